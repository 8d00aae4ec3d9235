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
    // With checks Dawn complains where a command is wrong; without them it would not be noticed.
    open: () => webgpuBackend.open({ extra: { software: 'allow', checks: 'on' } }),
  });
}
