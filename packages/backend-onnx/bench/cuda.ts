// Prefill, decode and folds of a whole model with random weights on CUDA. One JSON object a line on stdout. Bundled as
// conformance.ts is: node OUT/cuda.mjs --prefill 2048,8192 --decode 512,4096
import { parseArgs } from 'node:util';
import {
  type AttentionLayer,
  type Device,
  type Draw,
  f32,
  type HostTensor,
  type LayerGraph,
  type Row,
  type StateStore,
  type Step,
} from '@dsla/spec';
import {
  bodyAndHead,
  randomWeights,
  type Statistics,
  statistics,
  synthetic,
} from '../../backend-webgpu/bench/synthetic.js';
import type { OnnxDevice } from '../src/device.js';
import { onnxBackend } from '../src/index.js';

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string' },
    /** Plans, each a mixer and the number of first layers that take it: `scalar:16`; `default:0` is softmax attention throughout. */
    plans: { type: 'string', default: 'default:0' },
    prefill: { type: 'string', default: '' },
    decode: { type: 'string', default: '' },
    /** Rows of a decode step. */
    batch: { type: 'string', default: '1' },
    fold: { type: 'string', default: '' },
    rounds: { type: 'string', default: '20' },
    device: { type: 'string', default: 'cuda' },
    type: { type: 'string', default: 'f16' },
    /** Of matrices: q8 or q4. */
    weights: { type: 'string' },
    /** Of our own: on or off. */
    operators: { type: 'string', default: 'on' },
    /** The step draws the most likely tokens, and they alone come back. */
    draw: { type: 'boolean', default: false },
    /** Decodes once more, where each step draws and is handed over before the tokens of the one before it are known. */
    ahead: { type: 'boolean', default: false },
    /** How it draws, one after the other: the most likely token, or `temperature[:k[:p]]` as in `0.8`, `0.8:50`, `0.8::0.95`. */
    drawings: { type: 'string', default: 'greedy' },
  },
});
const numbers = (text: string | undefined): number[] => (text ?? '').split(',').filter(Boolean).map(Number);
const rounds = Number(options.rounds);
const drawings = options.drawings.split(',');
const [prefills, depths, batches, folds] = [options.prefill, options.decode, options.batch, options.fold].map(numbers);
const warmUp = 4; // the third step alike is recorded, the fourth is the first that is launched as a graph
const warmUpAhead = 12; // two plans in turn
const spare = rounds + warmUpAhead;

const model = synthetic(options.shape, options.layers ? Number(options.layers) : undefined);
const source = randomWeights(model);
const start = performance.now();
await using device = (await onnxBackend.open({
  ...(options.device === 'cuda' && { computeType: options.type as 'f16' }),
  extra: {
    device: options.device,
    operators: options.operators,
    ...(options.weights !== undefined && { weights: options.weights }),
  },
})) as OnnxDevice;
print({ test: 'open', milliseconds: performance.now() - start });

let before: readonly AttentionLayer[] = [];
for (const plan of options.plans.split(',')) {
  const [mixer, level] = [plan.split(':')[0]!, Number(plan.split(':')[1])];
  const graphs = model.segments.map(({ versions, layer }) =>
    layer !== undefined && layer < level ? (versions[mixer] ?? versions.default) : versions.default,
  );
  const begun = performance.now();
  const layers = await compile(device, bodyAndHead(model, graphs));
  const milliseconds = performance.now() - begun;
  for (const layer of before) layer[Symbol.dispose](); // not earlier: they share weights
  before = layers;
  print({ test: 'compile', plan, milliseconds, memory: device.memory().bytes });
  for (const tokens of prefills!)
    await tried({ test: 'prefill', plan, tokens, batch: 1 }, tokens, layers, (_, slot) => ({
      slot,
      past: 0,
      count: tokens,
    }));
  for (const batch of batches!)
    for (const tokens of depths!)
      for (const drawing of drawings) {
        const rowOf = (round: number, slot: number): Row => ({ slot, past: tokens + round, count: 1 });
        await tried({ test: 'decode', plan, tokens, batch, drawing }, tokens + spare, layers, rowOf);
        if (options.ahead) await ahead({ test: 'decode, ahead', plan, tokens, batch, drawing }, layers, rowOf);
      }
}
for (const layer of before) layer[Symbol.dispose]();
for (const plan of folds!.length > 0 ? options.plans.split(',') : [])
  for (const tokens of folds!) await fold(plan.split(':')[0]!, tokens);

async function compile(on: Device, graphs: readonly LayerGraph[]): Promise<AttentionLayer[]> {
  const made: AttentionLayer[] = [];
  for (const graph of graphs) made.push(await on.compile(graph, source));
  return made;
}

function stores(layers: readonly AttentionLayer[], slots: number, capacity: number): Record<string, StateStore> {
  const made: Record<string, StateStore> = {};
  for (const { graph } of layers)
    for (const spec of graph.states) made[spec.name] ??= device.createState(spec, slots, capacity);
  return made;
}

function drawsOf({ drawing = 'greedy', batch }: Kind, round: number): Draw[] {
  const [temperature, topK, topP] =
    drawing === 'greedy' ? [0] : drawing.split(':').map((text) => Number(text) || undefined);
  const uniformOf = (slot: number): number => ((round + 1) * 0.618034 + slot * 0.37) % 1;
  return Array.from({ length: batch }, (_, slot) => ({
    temperature: temperature!,
    topK,
    topP,
    uniform: temperature === 0 ? 0 : uniformOf(slot),
  }));
}

/** What is decoded on must be numbers: states of a fixed size begin with zeros, caches with what their memory holds. */
function startFrom(store: StateStore, slots: number): void {
  const shapes = store.spec.parts.map(({ shape }) => shape);
  if (shapes.flat().includes('tokens')) return;
  const zeros = (shapes as number[][]).map((shape) => f32(shape, new Float32Array(shape.reduce((a, b) => a * b, 1))));
  for (let slot = 0; slot < slots; slot++) store.import(slot, zeros);
}

/** What is timed. */
interface Kind {
  readonly test: string;
  readonly plan: string;
  readonly tokens: number;
  readonly batch: number;
  /** Of its tokens, the most likely ones where it is left out. */
  readonly drawing?: string;
}

/** Times a kind of step, from recording to the logits on the host, and prints it; a failure is printed as well. */
async function tried(
  kind: Kind,
  capacity: number,
  layers: readonly AttentionLayer[],
  rowOf: (round: number, slot: number) => Row,
): Promise<void> {
  const { test, batch } = kind;
  const states = stores(layers, batch, capacity);
  if (test === 'decode') for (const store of Object.values(states)) startFrom(store, batch);
  try {
    const samples: number[] = [];
    const computed: number[] = [];
    const parts = { record: [] as number[], submit: [] as number[], download: [] as number[] };
    const count = test === 'prefill' ? Math.min(rounds, 5) : rounds;
    let traffic = { toDevice: 0, toHost: 0 };
    for (let round = 0; round < count + warmUp; round++) {
      const rows = Array.from({ length: batch }, (_, slot) => rowOf(round, slot));
      const length = rows.reduce((sum, row) => sum + row.count, 0);
      const ids = Int32Array.from({ length }, (_, at) => 1 + ((at * 31 + round) % 997));
      traffic = { ...(device.binding.traffic ?? traffic) };
      const begun = performance.now();
      using step = device.beginStep({ ids, rows });
      for (const layer of layers) step.run(layer, states);
      if (options.draw) step.draw!(drawsOf(kind, round));
      const recorded = performance.now();
      await step.submit();
      const submitted = performance.now();
      const { data } = await device.download(step.value(options.draw ? 'ids' : 'logits'));
      if (round < warmUp) continue;
      const end = performance.now();
      samples.push(end - begun);
      computed.push(device.binding.computed / 1000);
      parts.record.push(recorded - begun);
      parts.submit.push(submitted - recorded - device.binding.computed / 1000);
      parts.download.push(end - submitted);
      const sound = options.draw ? data.every((id) => id >= 0) : data.every(Number.isFinite);
      if (!sound) throw new Error('logits are not finite');
    }
    const now = device.binding.traffic ?? traffic;
    const copied = { toDevice: now.toDevice - traffic.toDevice, toHost: now.toHost - traffic.toHost };
    const milliseconds: Statistics = statistics(samples);
    const inSessions = statistics(computed).median;
    const { replayed } = device.binding;
    const outside = Object.fromEntries(Object.entries(parts).map(([name, times]) => [name, statistics(times).median]));
    const free = device.binding.available();
    print({ ...kind, milliseconds, inSessions, outside, replayed, copied, free });
  } catch (error) {
    print({ ...kind, error: String(error).slice(0, 300) });
  } finally {
    for (const store of Object.values(states)) store[Symbol.dispose]();
  }
}

/** Times decoding from token to token, as who generates text sees it, and prints it; a failure is printed as well. */
async function ahead(
  kind: Kind,
  layers: readonly AttentionLayer[],
  rowOf: (round: number, slot: number) => Row,
): Promise<void> {
  const { tokens, batch } = kind;
  const states = stores(layers, batch, tokens + spare);
  try {
    const samples: number[] = [];
    let last: { readonly step: Step; readonly ids: Promise<HostTensor> } | undefined;
    let before = performance.now();
    for (let round = 0; round < rounds + warmUpAhead; round++) {
      const rows = Array.from({ length: batch }, (_, slot) => rowOf(round, slot));
      const step = device.beginStep({ ids: new Int32Array(batch), rows }, last && { ids: last.step.value('ids') });
      for (const layer of layers) step.run(layer, states);
      step.draw!(drawsOf(kind, round));
      const submitted = step.submit();
      const ids = Promise.all([device.download(step.value('ids')), submitted]).then(([drawn]) => drawn);
      ids.catch(() => {}); // whoever waits for it is told
      const known = last && (await last.ids).data;
      last?.step[Symbol.dispose]();
      if (known && !known.every((id) => id >= 0)) throw new Error('logits are not finite');
      last = { step, ids };
      const now = performance.now();
      if (round >= warmUpAhead) samples.push(now - before);
      before = now;
    }
    await last!.ids;
    last!.step[Symbol.dispose]();
    const { replayed } = device.binding;
    print({ ...kind, milliseconds: statistics(samples), replayed });
  } catch (error) {
    print({ ...kind, error: String(error).slice(0, 300) });
  } finally {
    for (const store of Object.values(states)) store[Symbol.dispose]();
  }
}

/** One layer's cache into the states of a mixer. */
async function fold(mixer: string, tokens: number): Promise<void> {
  const graph = model.folds[mixer]?.[0];
  if (!graph) return;
  const layers = await compile(device, [graph]);
  const states = stores(layers, 1, tokens);
  const samples: number[] = [];
  for (let round = 0; round < warmUp + 8; round++) {
    const begun = performance.now();
    using step = device.beginStep({ ids: new Int32Array(0), rows: [{ slot: 0, past: tokens, count: 0 }] });
    step.run(layers[0]!, states);
    await step.submit();
    if (round >= warmUp) samples.push(performance.now() - begun);
  }
  print({ test: 'fold', plan: mixer, tokens, batch: 1, milliseconds: statistics(samples) });
  for (const each of [...layers, ...Object.values(states)]) each[Symbol.dispose]();
}

function print(line: Readonly<Record<string, unknown>>): void {
  const command = `cuda.mjs ${process.argv.slice(2).join(' ')}`;
  const { shape, operators, weights = options.type } = options;
  const about = { shape, layers: model.convertible, weights, operators, command };
  console.log(JSON.stringify({ ...line, ...about, device: device.description, node: process.version }));
}
