import { backendConformance, float16 } from '@dsla/conformance';
import { describe, test } from 'vitest';
import { onnxBackend } from './index.js';

for (const binding of ['c-api', 'node']) {
  backendConformance({
    name: `onnx, ${binding}`,
    open: () => onnxBackend.open({ threads: 2, extra: { binding } }),
  });
}

const onCuda = { extra: { device: 'cuda' } };
const obstacles = await onnxBackend.obstacles(onCuda);
if (obstacles.length > 0) {
  describe('onnx, cuda conformance', () => test.skip(obstacles.join('; '), () => undefined));
} else {
  for (const computeType of ['f32', 'f16'] as const)
    backendConformance({
      name: `onnx, cuda ${computeType}`,
      open: () => onnxBackend.open({ ...onCuda, computeType }),
      ...(computeType === 'f16' && { tolerance: float16 }),
    });
}
