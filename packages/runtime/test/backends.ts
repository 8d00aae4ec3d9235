import { onnxBackend } from '@dsla/backend-onnx';
import { referenceBackend } from '@dsla/reference';
import type { AttentionBackend } from '@dsla/spec';

/** The definition, which takes segments one by one, and a backend that takes runs of them as one program. */
export const backends: readonly AttentionBackend[] = [referenceBackend, onnxBackend];
