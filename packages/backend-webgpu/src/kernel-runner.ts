import type { Row } from '@dsla/spec';
import { loadGpu, must } from './adapter.js';
import { Memory, Pool } from './buffers.js';
import type { Grid, Kernel } from './kernels/kernel.js';
import { withoutMatrices } from './matrix-emulation.js';
import { paced } from './pace.js';
import { Pipelines } from './pipelines.js';
import { type View, Views } from './view.js';

// For tests only: single kernels on a software adapter.

/** Runs kernels on buffers of one batch of rows; those of subgroup matrices spelled out. */
export interface Runner {
  readonly view: View;
  buffer(words: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>): GPUBuffer;
  run(kernel: Kernel, buffers: readonly GPUBuffer[], grid: Grid): Promise<void>;
  read(buffer: GPUBuffer): Promise<ArrayBuffer>;
}

export async function openRunner(rows: readonly Row[]): Promise<Runner> {
  const gpu = must(await loadGpu());
  const adapter = (await gpu.requestAdapter())!;
  const { maxComputeWorkgroupStorageSize, maxStorageBuffersPerShaderStage } = adapter.limits;
  const device = await adapter.requestDevice({
    requiredFeatures: ['subgroups' as GPUFeatureName],
    requiredLimits: { maxComputeWorkgroupStorageSize, maxStorageBuffersPerShaderStage },
  });
  const pipelines = new Pipelines(device);
  const memory = new Memory(device, Number.POSITIVE_INFINITY, (error) => {
    throw error;
  });
  const ids = new Int32Array(rows.reduce((sum, { count }) => sum + count, 0));
  const view = new Views(device, pipelines.batchLayout, new Pool(memory), { ids, rows }).step();
  return {
    view,
    buffer(words) {
      const buffer = memory.take('test', words.byteLength);
      device.queue.writeBuffer(buffer, 0, words);
      return buffer;
    },
    async run(kernel, own, grid) {
      let [used, buffers] = [kernel, own];
      if (kernel.code.includes('subgroup_matrix')) {
        const emulated = withoutMatrices(kernel);
        const scratch = memory.take('matrices', emulated.scratch * grid[0] * grid[1] * grid[2]);
        [used, buffers] = [emulated, [...own, scratch]];
      }
      const { pipeline, layout } = await pipelines.get(used);
      const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
      const group = device.createBindGroup({ layout, entries });
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, view.group);
      pass.setBindGroup(1, group);
      pass.dispatchWorkgroups(...grid);
      pass.end();
      device.queue.submit([encoder.finish()]);
      await paced(() => device.queue.onSubmittedWorkDone());
    },
    read: (buffer) => memory.read(buffer, 0, buffer.size),
  };
}

/** Bytes of workgroup memory that a kernel declares. */
export function workgroupMemory({ code }: Kernel): number {
  const bytes: Record<string, number> = { f16: 2, f32: 4, u32: 4, vec2u: 8, vec2f: 8, vec4u: 16, vec4f: 16 };
  const all = [...code.matchAll(/var<workgroup> \w+: array<(\w+), (\d+)>/g)];
  return all.reduce((sum, [, type, count]) => sum + bytes[type!]! * Number(count), 0);
}
