import { backendConformance } from '@dsla/conformance';
import { describe, test } from 'vitest';
import { webgpuBackend } from './index.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();
if (obstacle) {
  describe('webgpu conformance', () => test.skip(obstacle, () => undefined));
} else {
  backendConformance({
    name: 'webgpu',
    open: () => webgpuBackend.open({ extra: { software: 'allow' } }),
  });
}
