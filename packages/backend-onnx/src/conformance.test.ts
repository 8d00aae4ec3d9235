import { backendConformance } from '@dsla/conformance';
import { onnxBackend } from './index.js';

for (const binding of ['c-api', 'node']) {
  backendConformance({ name: `onnx, ${binding}`, open: () => onnxBackend.open({ threads: 2, extra: { binding } }) });
}
