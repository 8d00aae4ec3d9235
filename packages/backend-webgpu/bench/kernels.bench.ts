import { parseArgs } from 'node:util';
import { elementCount, type LayerGraph, type Row } from '@dsla/spec';
import { findAdapter, loadGpu, must } from '../src/adapter.js';
import { Memory, Pool } from '../src/buffers.js';
import { openGpu } from '../src/device.js';
import { bytesOf as bytesOfMatrix } from '../src/kernels/quantise.js';
import { lower } from '../src/lower.js';
import { Pipelines } from '../src/pipelines.js';
import { type BufferRef, elementBytes } from '../src/program.js';
import { RopeTables } from '../src/rope.js';
import { type View, Views } from '../src/view.js';
import { synthetic } from './synthetic.js';

// Microseconds of every kernel of one layer, each dispatched many times in one pass on buffers of its real size. One JSON
// object a line on stdout, last the copy rate of the device; see README.md.

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    mixer: { type: 'string', default: 'default' },
    /** New tokens a row, tokens already there, rows. */
    count: { type: 'string', default: '1' },
    past: { type: 'string', default: '4096' },
    rows: { type: 'string', default: '1' },
    repeat: { type: 'string', default: '50' },
    software: { type: 'boolean', default: false },
  },
});

const [count, past, rows, repeat] = [options.count, options.past, options.rows, options.repeat].map(Number) as [
  number,
  number,
  number,
  number,
];
const open = { extra: { checks: 'off', ...(options.software && { software: 'allow' }) } };
const adapter = must(await findAdapter(must(await loadGpu(open)), open));
const { device, traits } = await openGpu(adapter, open);
const pipelines = new Pipelines(device);
const memory = new Memory(device, Number.POSITIVE_INFINITY, (error) => {
  throw error;
});
const ropes = new RopeTables(device, memory);
const batch: Row[] = Array.from({ length: rows }, (_, slot) => ({ slot, past, count }));
const ids = new Int32Array(rows * count).fill(1);
const views = new Views(device, pipelines.batchLayout, new Pool(memory), { ids, rows: batch });
const model = synthetic(options.shape, options.shape === 'zamba-7b' ? 3 : 1);
const noise = makeNoise();
const seen = new Set<string>();

for (const graph of graphs()) await timeKernels(graph);
await timeCopy();
device.destroy();

function graphs(): LayerGraph[] {
  const segments = model.segments.map(({ versions }) => versions[options.mixer] ?? versions.default);
  return [...segments, model.head, ...(model.folds[options.mixer] ?? [])];
}

async function timeKernels(graph: LayerGraph): Promise<void> {
  const shapeOf = (name: string) => model.weights[name]!.shape;
  const { ops } = lower(graph, shapeOf, traits);
  const specs = new Map(graph.states.map((spec) => [spec.name, spec]));
  for (const op of ops) {
    const view = op.replay ? views.past() : views.step();
    const grid = op.grid(view);
    const key = `${op.kernel.name} ${grid} ${op.kernel.code.length}`;
    if (grid.includes(0) || seen.has(key)) continue;
    seen.add(key);
    const { pipeline, layout } = await pipelines.get(op.kernel);
    const taken: GPUBuffer[] = [];
    const buffers = op.buffers.map((ref) => {
      if (ref.kind === 'rope') return ropes.get(ref.key, ref.rope, view.positions);
      const buffer = memory.take(op.kernel.name, bytesOf(ref, view));
      taken.push(buffer);
      fill(buffer); // zeros would be faster than real data
      if (ref.kind === 'info') device.queue.writeBuffer(buffer, 0, new Uint32Array([past + count]));
      return buffer;
    });
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    const group = device.createBindGroup({ layout, entries });
    const run = async (times: number): Promise<number> => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, view.group);
      pass.setBindGroup(1, group);
      for (let n = 0; n < times; n++) pass.dispatchWorkgroups(...grid);
      pass.end();
      const start = performance.now();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
      return performance.now() - start;
    };
    await run(3);
    const [one, many] = [await run(1), await run(1 + repeat)];
    const microseconds = (1000 * (many - one)) / repeat;
    const bytes = buffers.reduce((sum, { size }) => sum + size, 0);
    const rate = bytes / microseconds / 1000;
    const line = { tape: graph.name, kernel: op.kernel.name, grid, microseconds, bytes, gigabytesPerSecond: rate };
    console.log(JSON.stringify(line));
    for (const buffer of taken) memory.give(buffer);
  }

  function bytesOf(ref: BufferRef, view: View): number {
    switch (ref.kind) {
      case 'weight':
        return bytesOfMatrix(ref.type, elementCount(shapeOf(ref.name)));
      case 'state': {
        const { dtype, shape } = specs.get(ref.state)!.parts[ref.part]!;
        const type = dtype === 'compute' ? traits.type : 'f32';
        const sizes = shape.map((size) => (size === 'tokens' ? past + count : size));
        return rows * sizes.reduce((a, b) => a * b, elementBytes[type]);
      }
      case 'temp': {
        const { domain, width, type } = ref.temp;
        const entries = domain === 'once' ? 1 : view.capacity[domain === 'past' ? 'token' : domain];
        return entries * width * elementBytes[type];
      }
      case 'value':
        return view.capacity[ref.value.domain] * ref.value.width * elementBytes[ref.value.type];
      default:
        return 16;
    }
  }
}

/** 16 MiB of small halves; read as float32 they are small too. */
function makeNoise(): GPUBuffer {
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

function fill(buffer: GPUBuffer): void {
  const encoder = device.createCommandEncoder();
  for (let at = 0; at < buffer.size; at += noise.size)
    encoder.copyBufferToBuffer(noise, 0, buffer, at, Math.min(noise.size, buffer.size - at));
  device.queue.submit([encoder.finish()]);
}

/** Bytes read and written a second by copies of 1 GiB (16 MiB on a software adapter). */
async function timeCopy(): Promise<void> {
  const size = options.software ? 1 << 24 : 1 << 30;
  const [from, to] = [memory.take('from', size), memory.take('to', size)];
  const run = async (times: number): Promise<number> => {
    const encoder = device.createCommandEncoder();
    for (let n = 0; n < times; n++) encoder.copyBufferToBuffer(from, 0, to, 0, size);
    const start = performance.now();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    return performance.now() - start;
  };
  await run(2);
  const [one, many] = [await run(1), await run(11)];
  console.log(JSON.stringify({ kernel: 'copy', gigabytesPerSecond: (2 * 10 * size) / (many - one) / 1e6 }));
}
