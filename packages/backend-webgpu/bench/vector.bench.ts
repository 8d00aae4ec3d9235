import { parseArgs } from 'node:util';
import { findAdapter, loadGpu, must } from '../src/adapter.js';
import { Memory, Pool } from '../src/buffers.js';
import { openGpu } from '../src/device.js';
import { linearVector, vectorGroups } from '../src/kernels/linear-vector.js';
import { bytesOf, type Format } from '../src/kernels/quantise.js';
import { loadWidth, type VectorShape } from '../src/kernels/vector-options.js';
import { hasVector, vectorShape } from '../src/kernels/vector-shape.js';
import { Pipelines } from '../src/pipelines.js';
import { Views } from '../src/view.js';

// Microseconds of the matrix-vector kernels of a model, cut in many ways. Matrices take turns, so that none is in the cache.
// One JSON object a line on stdout; see README.md.

const { values: options } = parseArgs({
  options: {
    items: { type: 'string', default: '1' },
    formats: { type: 'string', default: 'f16,q8,q4' },
    /** Only the cut that the backend takes. */
    chosen: { type: 'boolean', default: false },
    software: { type: 'boolean', default: false },
  },
});

interface Case {
  readonly name: string;
  readonly width: number;
  readonly outputs: readonly number[];
  readonly gated?: boolean;
  readonly normed?: boolean;
}

const scale = options.software ? 32 : 1;
const [hidden, inner] = [4096 / scale, 11008 / scale];
const cases: readonly Case[] = [
  { name: 'qkv', width: hidden, outputs: [hidden, hidden, hidden], normed: true },
  { name: 'o', width: hidden, outputs: [hidden] },
  { name: 'gate-up', width: hidden, outputs: [inner], gated: true, normed: true },
  { name: 'down', width: inner, outputs: [hidden] },
];

const items = Number(options.items);
const open = options.software ? { extra: { software: 'allow' } } : {};
const adapter = must(await findAdapter(must(await loadGpu(open)), open));
const { device, traits } = await openGpu(adapter, open);
const pipelines = new Pipelines(device);
const memory = new Memory(device, Number.POSITIVE_INFINITY, (error) => {
  throw error;
});
const ids = new Int32Array(items);
const rows = Array.from(ids, (_, slot) => ({ slot, past: 0, count: 1 }));
const view = new Views(device, pipelines.batchLayout, new Pool(memory), { ids, rows }).step();
const noise = device.createBuffer({ size: 1 << 24, usage: 0x84 | 8 });
device.queue.writeBuffer(
  noise,
  0,
  Uint16Array.from({ length: 1 << 23 }, (_, i) => (Math.imul(i, 40503) >>> 3) & 0xa7ff),
);

for (const format of options.formats.split(',') as Format[]) {
  const type = format === 'f16' && traits.type === 'f32' ? 'f32' : format;
  // Small ones, on a software adapter, may be too narrow for blocks.
  for (const one of cases) if (hasVector(type, { width: one.width, type: traits.type })) await timeCase(one, type);
}
device.destroy();

function* cuts(format: Format, { gated = false, width, outputs: each }: Case): Iterable<VectorShape> {
  const { lanes, threads = 256 } = traits;
  const outputs = each.reduce((sum, count) => sum + count, 0);
  yield vectorShape({ format, items, lanes, gated, width, outputs, threads });
  if (options.chosen) return;
  const loads = width / loadWidth[format];
  for (const own of [1, 2, 4]) {
    const size = Math.ceil(loads / own / lanes) * lanes;
    if (size > threads || (own > 1 && size < 2 * lanes)) continue;
    for (const rows of [4, 8, 16, 32])
      for (const ahead of [2, 4, 8, 16])
        for (const places of [1, 8]) if (ahead <= rows) yield { size, items, rows, ahead, lanes, places };
  }
}

async function timeCase(one: Case, format: Format): Promise<void> {
  const { name, width, outputs, gated = false, normed = false } = one;
  const matrices = outputs.flatMap((count) => (gated ? [count, count] : [count]));
  const bytes = matrices.reduce((sum, count) => sum + bytesOf(format, count * width), 0);
  const copies = options.software ? 1 : Math.ceil(3e8 / bytes);
  const buffer = (size: number) => {
    const made = device.createBuffer({ size: Math.ceil(size / 16) * 16, usage: 0x8c });
    const encoder = device.createCommandEncoder();
    for (let at = 0; at < made.size; at += noise.size)
      encoder.copyBufferToBuffer(noise, 0, made, at, Math.min(noise.size, made.size - at));
    device.queue.submit([encoder.finish()]);
    return made;
  };
  const weights = Array.from({ length: copies }, () => matrices.map((count) => buffer(bytesOf(format, count * width))));
  const [x, norm] = [buffer(4 * items * width), buffer(4 * width)];
  const ys = outputs.map((count) => buffer(4 * items * count));
  const compile = async (shape: VectorShape) => {
    const parts = outputs.map((count) => ({
      y: { width: count, type: traits.type },
      bias: false,
      gate: gated ? ('silu' as const) : undefined,
    }));
    const kernel = linearVector({
      domain: 'token',
      x: { width, type: traits.type },
      format,
      parts,
      shape,
      eps: normed ? 1e-5 : undefined,
    });
    return { shape, compiled: await pipelines.get(kernel) };
  };
  for (const { shape, compiled } of await Promise.all([...cuts(format, one)].map(compile))) {
    const { pipeline, layout } = compiled;
    const groups = weights.map((own) => {
      const each = own.length / ys.length;
      const list = [x, ...(normed ? [norm] : []), ...ys.flatMap((y, p) => [...own.slice(p * each, (p + 1) * each), y])];
      const entries = list.map((buffer, binding) => ({ binding, resource: { buffer } }));
      return device.createBindGroup({ layout, entries });
    });
    const parts = outputs.map((width) => ({ y: { width, type: traits.type } }));
    const grid = vectorGroups(parts, shape);
    const run = async (times: number): Promise<number> => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, view.group);
      for (let n = 0; n < times; n++) {
        pass.setBindGroup(1, groups[n % groups.length]!);
        pass.dispatchWorkgroups(grid, Math.ceil(items / shape.items));
      }
      pass.end();
      const start = performance.now();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
      return performance.now() - start;
    };
    const repeat = options.software ? 2 : 120;
    await run(2 * copies);
    const times = [];
    for (let round = 0; round < 3; round++) times.push(-(await run(copies)) + (await run(copies + repeat)));
    const microseconds = (1000 * times.sort((a, b) => a - b)[1]!) / repeat;
    const rate = bytes / microseconds / 1000;
    console.log(JSON.stringify({ name, format, ...shape, microseconds, bytes, gigabytesPerSecond: rate }));
  }
  for (const made of [...weights.flat(), x, norm, ...ys]) made.destroy();
}
