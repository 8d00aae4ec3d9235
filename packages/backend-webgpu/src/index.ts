import { type AttentionBackend, throwIfAborted } from '@dsla/spec';
import { findAdapter, loadGpu, must } from './adapter.js';
import { openDevice } from './device.js';

export { tune, tuned } from './tune.js';
export type { Choice } from './tuning.js';

/**
 * WebGPU through Dawn (npm package `webgpu`, a peer dependency). Options in `extra`: `software: 'allow'` takes a software
 * adapter, `memory` limits the bytes held, `checks: 'on'` puts bounds checks into kernels, `backend` is Dawn's name of
 * a backend. computeType: f16 where the device has it, unless told.
 */
export const webgpuBackend: AttentionBackend = {
  specificationVersion: 1,
  name: 'webgpu',
  async obstacles(options) {
    const gpu = await loadGpu(options);
    if ('obstacle' in gpu) return [gpu.obstacle];
    const adapter = await findAdapter(gpu.value, options);
    return 'obstacle' in adapter ? [adapter.obstacle] : [];
  },
  async open(options = {}) {
    throwIfAborted(options.signal, 'webgpu open');
    const gpu = must(await loadGpu(options));
    const adapter = must(await findAdapter(gpu, options));
    throwIfAborted(options.signal, 'webgpu open');
    return await openDevice(adapter, options);
  },
};
