import { backendConformance, float16 } from '@dsla/conformance';
import type { Device } from '@dsla/spec';
import { openCApi } from './binding/c-api.js';
import { libraryPath } from './binding/choose.js';
import { OnnxDevice } from './device.js';
import { type Dialect, onCuda } from './dialect.js';

// What is lowered for CUDA must mean the same on the CPU, whose provider runs float16 too, by casts. Only the whole capacity as the
// length of a cache is CUDA's own.

async function open(dialect: Dialect): Promise<Device> {
  const binding = await openCApi(libraryPath(), { threads: 2, packs: false });
  return new OnnxDevice(Object.assign(binding, { dialect: { ...dialect, replays: false } }));
}

backendConformance({ name: 'onnx, lowered for CUDA in float32', open: () => open(onCuda('float')) });
backendConformance({
  name: 'onnx, lowered for CUDA in float16',
  open: () => open(onCuda('float16')),
  tolerance: float16,
});
