/// <reference types="@webgpu/types" />
import { DslaError, type OpenOptions } from '@dsla/spec';

/** Dawn's WebGPU, or a sentence that says what is missing. */
export type Found<T> = { readonly value: T } | { readonly obstacle: string };

/** Of the largest kernels: a window joined with a dual state, three products of a norm with biases. */
const storageBuffers = 12;
/** Bytes of workgroup memory of the largest kernels without subgroup matrices. */
export const workgroupBytes = 19456;

// What Dawn's create() returns must stay reachable: once collected, it takes the process down.
const instances = new Map<string, GPU>();

/** Loads the peer dependency `webgpu` and makes an instance; `extra.backend` is Dawn's name of a backend, e.g. `null`. */
export async function loadGpu(options: OpenOptions = {}): Promise<Found<GPU>> {
  const flags = dawnFlags(options);
  const key = flags.join(' ');
  const known = instances.get(key);
  if (known) return { value: known };
  try {
    const { create } = await import('webgpu');
    if (process.platform === 'linux' && !options.extra?.backend && !loads('libvulkan.so.1'))
      return { obstacle: 'Dawn needs the Vulkan loader libvulkan.so.1 (libvulkan1) and a driver; it does not load.' };
    const gpu = create(flags);
    instances.set(key, gpu);
    return { value: gpu };
  } catch (error) {
    const reason = error instanceof Error ? error.message.split('\n')[0] : String(error);
    return { obstacle: `the package webgpu (Dawn) cannot be loaded: ${reason}. Install webgpu 0.6.2.` };
  }
}

/** Whether the system has a library. Asked before Dawn is, which prints its own complaint past `process.stderr`. */
function loads(library: string): boolean {
  try {
    process.dlopen({ exports: {} }, library);
  } catch (error) {
    return error instanceof Error && error.message.includes('did not self-register'); // loaded, and no addon
  }
  return true;
}

/** The adapter to use. A software adapter is taken only with `extra: { software: 'allow' }`. */
export async function findAdapter(gpu: GPU, options: OpenOptions = {}): Promise<Found<GPUAdapter>> {
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) {
    return {
      obstacle: 'no WebGPU adapter: a Vulkan, Metal or D3D12 driver and its loader (libvulkan1 on Linux) are needed.',
    };
  }
  if (adapter.info.isFallbackAdapter && options.extra?.software !== 'allow') {
    return {
      obstacle: `the only WebGPU adapter is software (${adapter.info.description}). Pass extra: { software: 'allow' } to use it.`,
    };
  }
  const buffers = adapter.limits.maxStorageBuffersPerShaderStage;
  if (buffers < storageBuffers)
    return { obstacle: `the adapter binds ${buffers} storage buffers a kernel, ${storageBuffers} are needed.` };
  const bytes = adapter.limits.maxComputeWorkgroupStorageSize;
  if (bytes < workgroupBytes)
    return { obstacle: `the adapter gives a workgroup ${bytes} bytes of memory, ${workgroupBytes} are needed.` };
  if (options.computeType === 'f16' && !adapter.features.has('shader-f16'))
    return {
      obstacle: `the adapter ${adapter.info.description} has no shader-f16. Leave out computeType or use 'f32'.`,
    };
  return { value: adapter };
}

/** @throws DslaError E_UNAVAILABLE */
export function must<T>(found: Found<T>): T {
  if ('value' in found) return found.value;
  throw new DslaError('E_UNAVAILABLE', { where: 'webgpu', rule: found.obstacle.replace(/\.$/, '') });
}

function dawnFlags(options: OpenOptions): string[] {
  const features = ['allow_unsafe_apis', 'vulkan_enable_f16_on_nvidia'];
  // Robust buffer access and zeroed workgroup memory cost up to two thirds of the speed of a product; our kernels rely on neither.
  // Validation of every command is half of what the host does for a token.
  if (options.extra?.checks !== 'on') features.push('disable_robustness', 'disable_workgroup_init', 'skip_validation');
  const flags = [`enable-dawn-features=${features.join(',')}`];
  if (options.extra?.backend) flags.push(`backend=${options.extra.backend}`);
  return flags;
}
