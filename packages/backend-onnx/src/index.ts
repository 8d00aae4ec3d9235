import { type AttentionBackend, DslaError, throwIfAborted } from '@dsla/spec';
import { choose } from './binding/choose.js';
import { OnnxDevice } from './device.js';

/**
 * ONNX Runtime, on the CPU in float32 or on CUDA. `extra`: `device` is 'cpu' (default) or 'cuda' (float16 unless `computeType` is
 * 'f32'); `binding` is 'c-api' (its C API through koffi) or 'node' (onnxruntime-node's
 * own), by default the first that works; `profile` is a prefix for the files of ONNX Runtime's profiler.
 */
export const onnxBackend: AttentionBackend = {
  specificationVersion: 1,
  name: 'onnx',
  async obstacles(options) {
    return (await choose(options)).obstacles;
  },
  async open(options) {
    throwIfAborted(options?.signal, 'onnx open');
    const { obstacles, open } = await choose(options);
    if (!open) throw new DslaError('E_UNAVAILABLE', { where: 'onnx open', rule: obstacles.join('; ') });
    return new OnnxDevice(await open());
  },
};
