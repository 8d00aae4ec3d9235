import type { Device, OpenOptions } from '@dsla/spec';
import { create } from 'webgpu';
import { findAdapter, must } from '../src/adapter.js';
import { openDevice } from '../src/device.js';
import { type Dispatch, encode } from '../src/recording.js';

// A backend whose dispatches can be timed by the device's own clock.

export interface Timed {
  readonly device: Device;
  /** Milliseconds of each of `count` passes of these dispatches, submitted together. */
  time(dispatches: readonly Dispatch[], count: number): Promise<number[]>;
}

const features =
  'allow_unsafe_apis,vulkan_enable_f16_on_nvidia,skip_validation,disable_robustness,disable_workgroup_init';
const most = 64;
let instance: GPU | undefined; // must not be collected before the process ends

export async function openTimed(options: OpenOptions): Promise<Timed> {
  instance = create([`enable-dawn-features=${features}`, 'disable-dawn-features=timestamp_quantization']);
  const adapter = must(await findAdapter(instance, options));
  const request = adapter.requestDevice.bind(adapter);
  let gpu: GPUDevice | undefined;
  adapter.requestDevice = async (wanted = {}) => {
    const requiredFeatures = [...(wanted.requiredFeatures ?? []), 'timestamp-query' as const];
    gpu = await request({ ...wanted, requiredFeatures });
    return gpu;
  };
  const device = await openDevice(adapter, options);
  return { device, time: timer(gpu!) };
}

function timer(gpu: GPUDevice): Timed['time'] {
  const querySet = gpu.createQuerySet({ type: 'timestamp', count: 2 * most });
  const resolved = gpu.createBuffer({ size: 16 * most, usage: 0x200 | 4 });
  const mapped = gpu.createBuffer({ size: 16 * most, usage: 1 | 8 });
  return async (dispatches, count) => {
    const encoder = gpu.createCommandEncoder();
    for (let n = 0; n < count; n++)
      encode(encoder, dispatches, {
        timestampWrites: { querySet, beginningOfPassWriteIndex: 2 * n, endOfPassWriteIndex: 2 * n + 1 },
      });
    encoder.resolveQuerySet(querySet, 0, 2 * count, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, mapped, 0, 16 * count);
    gpu.queue.submit([encoder.finish()]);
    await mapped.mapAsync(1);
    const ticks = [...new BigUint64Array(mapped.getMappedRange(0, 16 * count))];
    mapped.unmap();
    return Array.from({ length: count }, (_, n) => Number(ticks[2 * n + 1]! - ticks[2 * n]!) / 1e6);
  };
}
