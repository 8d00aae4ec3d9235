import { type AttentionBackend, DslaError, throwIfAborted } from '@dsla/spec';
import { choose, version } from './binding/choose.js';
import { type CudaRequirement, cudaRequirements as requirements } from './binding/cuda-requirements.js';
import { OnnxDevice } from './device.js';

export type { CudaRequirement };

/**
 * ONNX Runtime, on the CPU in float32 or on CUDA. `extra`: `device` is 'cpu' (default) or 'cuda' (float16 unless `computeType` is
 * 'f32'); `operators` 'off' leaves out operators of our own there; `binding` is 'c-api' (its C API through koffi) or 'node'
 * (onnxruntime-node's own), by default the first that works; `profile` is a prefix for the files of ONNX Runtime's profiler.
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

/** Why `open` with `extra.device` 'cuda' would fail here, each a sentence with what to install; empty where it should work. */
export async function cudaObstacles(): Promise<readonly string[]> {
  return await onnxBackend.obstacles({ extra: { device: 'cuda' } });
}

/** What CUDA needs to be installed, the package first. `major`: of CUDA, 12 (which onnxruntime-node's installer brings) or 13. */
export function cudaRequirements(major: 12 | 13 = 12): readonly CudaRequirement[] {
  return requirements(version, major);
}
