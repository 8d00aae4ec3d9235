import { backendConformance } from '@dsla/conformance';
import { onnxBackend } from './index.js';

backendConformance({ name: 'onnx, C API', open: () => onnxBackend.open({ threads: 2, extra: { binding: 'c-api' } }) });
