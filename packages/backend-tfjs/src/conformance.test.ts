import { backendConformance } from '@dsla/conformance';
import { tfjsBackend } from './index.js';

for (const engine of ['cpu', 'wasm']) {
  backendConformance({ name: `tfjs ${engine}`, open: async () => await tfjsBackend.open({ extra: { engine } }) });
}
