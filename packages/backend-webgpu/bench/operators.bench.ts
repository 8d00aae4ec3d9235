import { parseArgs } from 'node:util';
import type { LayerGraph, Row } from '@dsla/spec';
import { create } from 'webgpu';
import { findAdapter, must } from '../src/adapter.js';
import { Memory, Pool } from '../src/buffers.js';
import { openGpu } from '../src/device.js';
import { lower } from '../src/lower.js';
import { Pipelines } from '../src/pipelines.js';
import { type BufferRef, elementBytes, type Op } from '../src/program.js';
import { RopeTables } from '../src/rope.js';
import { type View, Views } from '../src/view.js';
import { synthetic } from './synthetic.js';

// Milliseconds of every operator of a prefill of Llama2-7B's shape by the device's own clock: products, attention of every
// mixer, folds of a cache. The kernels of an operator run one by one, each several times, on noise. One JSON object a line.

const { values: options } = parseArgs({
  options: {
    products: { type: 'string', default: '4096,8192' },
    mixers: { type: 'string', default: 'default,scalar,vector,foldable' },
    tokens: { type: 'string', default: '4096,8192,32768' },
    folds: { type: 'string', default: 'scalar,foldable' },
    past: { type: 'string', default: '32768' },
    shape: { type: 'string', default: 'llama2-7b' },
    repeat: { type: 'string', default: '5' },
    settle: { type: 'string', default: '5' },
    software: { type: 'boolean', default: false },
  },
});
const list = (text: string): string[] => text.split(',').filter(Boolean);
const repeat = Number(options.repeat);

const features = 'allow_unsafe_apis,vulkan_enable_f16_on_nvidia,disable_robustness,disable_workgroup_init';
const gpu = create([`enable-dawn-features=${features}`, 'disable-dawn-features=timestamp_quantization']);
const adapter = must(await findAdapter(gpu, options.software ? { extra: { software: 'allow' } } : {}));
const request = adapter.requestDevice.bind(adapter);
adapter.requestDevice = (wanted = {}) =>
  request({ ...wanted, requiredFeatures: [...(wanted.requiredFeatures ?? []), 'timestamp-query'] });
const { device, traits } = await openGpu(adapter, {});
const pipelines = new Pipelines(device);
const memory = new Memory(device, Number.POSITIVE_INFINITY, (error) => {
  throw error;
});
const ropes = new RopeTables(device, memory);
const model = synthetic(options.shape, 1);
const noise = makeNoise();
const times = device.createQuerySet({ type: 'timestamp', count: 2 });
const resolved = device.createBuffer({ size: 256, usage: 0x200 | 4 });
const mapped = device.createBuffer({ size: 256, usage: 1 | 8 });

// Drivers go on optimising a kernel after its first use: all run once, then some seconds later for the record.
for (const record of [false, true]) {
  for (const one of operators()) await measure(one, record ? repeat : 0);
  if (!record) await new Promise((resolve) => setTimeout(resolve, 1000 * Number(options.settle)));
}
device.destroy();
process.exit(); // the instance must not be collected before

interface Operator {
  readonly name: string;
  readonly graph: LayerGraph;
  readonly shapes: Readonly<Record<string, readonly number[]>>;
  readonly tokens: number;
  readonly past: number;
  readonly flops?: number;
}

function* operators(): Generator<Operator> {
  // Widths of the model and of its feed-forward half.
  const [hidden, inner] = options.shape === 'tiny' ? [128, 256] : [4096, 11008];
  for (const tokens of list(options.products).map(Number))
    for (const [width, out] of [
      [hidden, hidden],
      [hidden, inner],
      [inner, hidden],
    ] as const) {
      const flops = 2 * tokens * width * out;
      const name = `product ${width} to ${out}`;
      yield { name, graph: product(width), shapes: { w: [out, width] }, tokens, past: 0, flops };
    }
  const shapes = Object.fromEntries(Object.entries(model.weights).map(([name, { shape }]) => [name, shape]));
  const { versions } = model.segments.find(({ versions }) => Object.keys(versions).length > 1)!;
  for (const tokens of list(options.tokens).map(Number))
    for (const mixer of list(options.mixers))
      yield { name: `attention ${mixer}`, graph: versions[mixer] ?? versions.default, shapes, tokens, past: 0 };
  for (const mixer of list(options.folds))
    for (const past of list(options.past).map(Number))
      yield { name: `fold ${mixer}`, graph: model.folds[mixer]![0]!, shapes, tokens: 0, past };
}

/** y = x W^T */
function product(width: number): LayerGraph {
  return {
    name: 'product',
    states: [],
    nodes: [
      { op: 'input', name: 'x', width },
      { op: 'linear', x: 0, weight: 'w' },
      { op: 'output', name: 'y', x: 1 },
    ],
  };
}

/** Times the kernels of an operator, or with no `times` runs them once. */
async function measure({ name, graph, shapes, tokens, past, flops }: Operator, times: number): Promise<void> {
  const rows: Row[] = [{ slot: 0, past, count: tokens }];
  const views = new Views(device, pipelines.batchLayout, new Pool(memory), { ids: new Int32Array(tokens), rows });
  const { ops } = lower(graph, (weight) => shapes[weight]!, traits);
  const kernels: { readonly kernel: string; readonly milliseconds: number }[] = [];
  for (const op of ops) {
    const view = op.replay ? views.past() : views.step();
    if (op.grid(view).includes(0)) continue;
    kernels.push({ kernel: op.kernel.name, milliseconds: await timeOp(graph, op, view, shapes, tokens + past, times) });
  }
  views.release();
  if (times === 0) return;
  const milliseconds = kernels.reduce((sum, kernel) => sum + kernel.milliseconds, 0);
  const rate = flops === undefined ? {} : { teraflops: flops / milliseconds / 1e9 };
  console.log(JSON.stringify({ operator: name, tokens, past, milliseconds, ...rate, kernels }));
}

/** The shortest of three passes of some dispatches, a dispatch. */
async function timeOp(
  graph: LayerGraph,
  op: Op,
  view: View,
  shapes: Readonly<Record<string, readonly number[]>>,
  capacity: number,
  count: number,
): Promise<number> {
  const { pipeline, layout } = await pipelines.get(op.kernel);
  const taken: GPUBuffer[] = [];
  const entries = op.buffers.map((ref, binding) => {
    if (ref.kind === 'rope') return { binding, resource: { buffer: ropes.get(ref.key, ref.rope, view.positions) } };
    const buffer = memory.take(op.kernel.name, bytesOf(graph, ref, view, shapes, capacity));
    taken.push(buffer);
    fill(buffer); // zeros would be faster than real data
    if (ref.kind === 'info') device.queue.writeBuffer(buffer, 0, new Uint32Array([capacity]));
    return { binding, resource: { buffer } };
  });
  const group = device.createBindGroup({ layout, entries });
  const run = async (dispatches: number): Promise<number> => {
    const encoder = device.createCommandEncoder();
    const timestampWrites = { querySet: times, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
    const pass = encoder.beginComputePass({ timestampWrites });
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, view.group);
    pass.setBindGroup(1, group);
    for (let n = 0; n < dispatches; n++) pass.dispatchWorkgroups(...op.grid(view));
    pass.end();
    encoder.resolveQuerySet(times, 0, 2, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, mapped, 0, 16);
    device.queue.submit([encoder.finish()]);
    await mapped.mapAsync(1);
    const [start, end] = new BigUint64Array(mapped.getMappedRange(0, 16)) as unknown as [bigint, bigint];
    mapped.unmap();
    return Number(end - start) / 1e6 / dispatches;
  };
  await run(1);
  const samples = count === 0 ? [0] : [await run(count), await run(count), await run(count)];
  for (const buffer of taken) memory.give(buffer);
  return Math.min(...samples);
}

function bytesOf(
  graph: LayerGraph,
  ref: BufferRef,
  view: View,
  shapes: Readonly<Record<string, readonly number[]>>,
  capacity: number,
): number {
  switch (ref.kind) {
    case 'weight':
      return shapes[ref.name]!.reduce((a, b) => a * b, 4);
    case 'state': {
      const { dtype, shape } = graph.states.find(({ name }) => name === ref.state)!.parts[ref.part]!;
      const type = dtype === 'compute' ? traits.type : 'f32';
      return shape.map((size) => (size === 'tokens' ? capacity : size)).reduce((a, b) => a * b, elementBytes[type]);
    }
    case 'temp': {
      const { domain, width, type } = ref.temp;
      const count = domain === 'once' ? 1 : view.capacity[domain === 'past' ? 'token' : domain];
      return count * width * elementBytes[type];
    }
    case 'value':
      return view.capacity[ref.value.domain] * ref.value.width * elementBytes[ref.value.type];
    default:
      return 16;
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
