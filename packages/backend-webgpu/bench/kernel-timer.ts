import { elementCount, type LayerGraph, type Row, type WeightShape } from '@dsla/spec';
import { create } from 'webgpu';
import { findAdapter, must } from '../src/adapter.js';
import { Memory, Pool } from '../src/buffers.js';
import type { Traits } from '../src/builder.js';
import { openGpu } from '../src/device.js';
import { bytesOf as bytesOfMatrix } from '../src/kernels/quantise.js';
import { lower } from '../src/lower.js';
import { Pipelines } from '../src/pipelines.js';
import { type BufferRef, elementBytes, type Op } from '../src/program.js';
import { RopeTables } from '../src/rope.js';
import { type View, Views } from '../src/view.js';

// Times of single kernels by the device's own clock, on noise in buffers of their real size.

/** A tape and the rows of a step that runs it. */
export interface Run {
  readonly graph: LayerGraph;
  readonly shapeOf: WeightShape;
  readonly rows: readonly Row[];
}

export interface KernelTime {
  readonly kernel: string;
  readonly grid: readonly number[];
  readonly milliseconds: number;
  /** Of all its buffers. */
  readonly bytes: number;
}

export interface KernelTimer {
  readonly traits: Traits;
  readonly description: string;
  /** The kernels of a tape, each the shortest of three passes of `count` dispatches; with `count` 0 only compiled and run. */
  time(run: Run, count: number, traits?: Traits): Promise<KernelTime[]>;
  /** Keeps the device at work with what `time` was given last, for so many seconds: its clocks rise under load only. */
  warm(seconds: number): Promise<void>;
  close(): void;
}

const features = 'allow_unsafe_apis,vulkan_enable_f16_on_nvidia,disable_robustness,disable_workgroup_init';
let instance: GPU | undefined; // must not be collected before the process ends

export async function openKernelTimer(software: boolean): Promise<KernelTimer> {
  instance = create([`enable-dawn-features=${features}`, 'disable-dawn-features=timestamp_quantization']);
  const adapter = must(await findAdapter(instance, software ? { extra: { software: 'allow' } } : {}));
  const request = adapter.requestDevice.bind(adapter);
  adapter.requestDevice = (wanted = {}) =>
    request({ ...wanted, requiredFeatures: [...(wanted.requiredFeatures ?? []), 'timestamp-query'] });
  const { device, traits } = await openGpu(adapter, {});
  const pipelines = new Pipelines(device);
  const memory = new Memory(device, Number.POSITIVE_INFINITY, (error) => {
    throw error;
  });
  const ropes = new RopeTables(device, memory);
  const noise = noiseOf(device, memory);
  const timestamps = device.createQuerySet({ type: 'timestamp', count: 2 });
  const resolved = device.createBuffer({ size: 256, usage: 0x200 | 4 });
  const mapped = device.createBuffer({ size: 256, usage: 1 | 8 });
  let last: (dispatches: number) => Promise<number> = async () => 0;
  let held: readonly GPUBuffer[] = []; // of the last kernel

  const timeOp = async ({ graph, shapeOf, rows }: Run, op: Op, view: View, count: number): Promise<KernelTime> => {
    const { pipeline, layout } = await pipelines.get(op.kernel);
    for (const buffer of held) memory.give(buffer);
    const taken: GPUBuffer[] = [];
    const buffers = op.buffers.map((ref) => {
      if (ref.kind === 'rope') return ropes.get(ref.key, ref.rope, view.positions);
      const buffer = memory.take(op.kernel.name, bytesOf(ref, view, { graph, shapeOf, rows }, traits));
      taken.push(buffer);
      if (ref.kind !== 'parts') fill(device, buffer, noise); // zeros would be faster than real data
      if (ref.kind === 'info') device.queue.writeBuffer(buffer, 0, new Uint32Array([tokensOf(rows)]));
      return buffer;
    });
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    const group = device.createBindGroup({ layout, entries });
    const grid = op.grid(view);
    const pass = async (dispatches: number): Promise<number> => {
      const encoder = device.createCommandEncoder();
      const timestampWrites = { querySet: timestamps, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
      const recorded = encoder.beginComputePass({ timestampWrites });
      recorded.setPipeline(pipeline);
      recorded.setBindGroup(0, view.group);
      recorded.setBindGroup(1, group);
      for (let n = 0; n < dispatches; n++) recorded.dispatchWorkgroups(...grid);
      recorded.end();
      encoder.resolveQuerySet(timestamps, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, mapped, 0, 16);
      device.queue.submit([encoder.finish()]);
      await mapped.mapAsync(1);
      const [start, end] = new BigUint64Array(mapped.getMappedRange(0, 16)) as unknown as [bigint, bigint];
      mapped.unmap();
      return Number(end - start) / 1e6 / dispatches;
    };
    await pass(Math.max(count, 1));
    const samples = count === 0 ? [0] : [await pass(count), await pass(count), await pass(count)];
    [last, held] = [pass, taken];
    const bytes = buffers.reduce((sum, { size }) => sum + size, 0);
    return { kernel: op.kernel.name, grid, milliseconds: Math.min(...samples), bytes };
  };

  return {
    traits,
    description: adapter.info.description,
    async time(run, count, of = traits) {
      const ids = new Int32Array(run.rows.reduce((sum, row) => sum + row.count, 0)).fill(1);
      const views = new Views(device, pipelines.batchLayout, new Pool(memory), { ids, rows: run.rows });
      const times: KernelTime[] = [];
      for (const op of lower(run.graph, run.shapeOf, of).ops) {
        const view = op.replay ? views.past() : views.step();
        if (!op.grid(view).includes(0)) times.push(await timeOp(run, op, view, count));
      }
      views.release();
      return times;
    },
    async warm(seconds) {
      for (const start = performance.now(); performance.now() - start < 1000 * seconds; ) await last(20);
    },
    close() {
      device.destroy();
    },
  };
}

/** Of the longest row. */
function tokensOf(rows: readonly Row[]): number {
  return Math.max(...rows.map(({ past, count }) => past + count));
}

function bytesOf(ref: BufferRef, view: View, { graph, shapeOf, rows }: Run, traits: Traits): number {
  switch (ref.kind) {
    case 'weight':
      return bytesOfMatrix(ref.type, elementCount(shapeOf(ref.name)));
    case 'state': {
      const { dtype, shape } = graph.states.find(({ name }) => name === ref.state)!.parts[ref.part]!;
      const type = dtype === 'compute' ? traits.type : 'f32';
      const sizes = shape.map((size) => (size === 'tokens' ? tokensOf(rows) : size));
      return rows.length * sizes.reduce((a, b) => a * b, elementBytes[type]);
    }
    case 'temp': {
      const { domain, width, type } = ref.temp;
      const entries = domain === 'once' ? 1 : view.capacity[domain === 'past' ? 'token' : domain];
      return entries * width * elementBytes[type];
    }
    case 'parts':
      return view.splits * ref.width * 4;
    case 'value':
      return view.capacity[ref.value.domain] * ref.value.width * elementBytes[ref.value.type];
    default:
      return 16;
  }
}

/** 16 MiB of small halves; read as float32 they are small too. */
function noiseOf(device: GPUDevice, memory: Memory): GPUBuffer {
  const size = 1 << 24;
  const buffer = memory.take('noise', size);
  let state = 1;
  const words = Uint16Array.from({ length: size / 2 }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 16) & 0xa7ff; // a sign, at most 2^-5
  });
  device.queue.writeBuffer(buffer, 0, words);
  return buffer;
}

function fill(device: GPUDevice, buffer: GPUBuffer, noise: GPUBuffer): void {
  const encoder = device.createCommandEncoder();
  for (let at = 0; at < buffer.size; at += noise.size)
    encoder.copyBufferToBuffer(noise, 0, buffer, at, Math.min(noise.size, buffer.size - at));
  device.queue.submit([encoder.finish()]);
}
