import { backendConformance } from '@dsla/conformance';
import { tfjsBackend } from './index.js';

const skip = [{ reason: 'its steps do not draw; the runtime does it on the host', tests: ['draw > '] }];

for (const engine of ['cpu', 'wasm']) {
  backendConformance({ name: `tfjs ${engine}`, open: async () => await tfjsBackend.open({ extra: { engine } }), skip });
}
