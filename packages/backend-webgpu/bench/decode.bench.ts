import { parseArgs } from 'node:util';
import {
  type AttentionLayer,
  bytesPerElement,
  elementCount,
  type LayerGraph,
  partShape,
  type Row,
  type StateStore,
  type Step,
} from '@dsla/spec';
import { bytesOf, type Format } from '../src/kernels/quantise.js';
import type { WebgpuLayer } from '../src/layer.js';
import type { Dispatch } from '../src/recording.js';
import type { DeviceTimes } from './decode-lines.js';
import { randomWeights, type Statistics, statistics, synthetic } from './synthetic.js';
import { openTimed } from './timed.js';

// Decoding of a whole model with random weights: milliseconds a step from recording to the logits on the host, and a token when
// tokens are drawn on the device and the next step is recorded before the last is back; of the device alone, by its clock, and
// how much less without each kernel. With the bytes that a step must read, for the floor. One JSON object a line on stdout; see
// README.md.

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string' },
    /** Context and batch of each run; with `@n` the first n layers take the mixer, the others softmax attention. */
    runs: { type: 'string', default: '512x1,4096x1,16384x1,4096x32' },
    mixer: { type: 'string', default: 'foldable' },
    weights: { type: 'string', default: 'f16' },
    rounds: { type: 'string', default: '50' },
    /** Seconds of work before the clock starts, in which the device's own clocks rise. */
    settle: { type: 'string', default: '3' },
    software: { type: 'boolean', default: false },
  },
});

const rounds = Number(options.rounds);
const warm = 5;
const type = options.software ? 'f32' : 'f16';
const format = (options.weights === 'f16' ? type : options.weights) as Format;
const runs = options.runs.split(',').map((run) => {
  const [tokens, batch, level = 0] = run.split(/[x@]/).map(Number) as [number, number, number?];
  return { tokens, batch, level };
});
const { device, time } = await openTimed({
  computeType: type,
  extra: { weights: format, ...(options.software && { software: 'allow' }) },
});
const model = synthetic(options.shape, options.layers ? Number(options.layers) : undefined);
const source = randomWeights(model);
/** The tapes of a step, and their layers; levels share their weights. */
let graphs: LayerGraph[] = [];
let layers: AttentionLayer[] = [];

async function compile(level: number): Promise<void> {
  const before = layers;
  graphs = [
    ...model.segments.map(({ versions, layer }) => {
      const mixer = layer !== undefined && layer < level ? options.mixer : 'default';
      return versions[mixer] ?? versions.default;
    }),
    model.head,
  ];
  layers = [];
  for (const graph of graphs) layers.push(await device.compile(graph, source));
  for (const layer of before) layer[Symbol.dispose]();
}

let settled = false;
let compiled: number | undefined;
for (const { tokens, batch, level } of runs) {
  if (level !== compiled) await compile(level);
  compiled = level;
  const stores: Record<string, StateStore> = {};
  for (const spec of graphs.flatMap(({ states }) => states))
    stores[spec.name] ??= device.createState(spec, batch, tokens + rounds + warm);
  const rowsOf = (round: number) =>
    Array.from({ length: batch }, (_, slot) => ({ slot, past: tokens + round, count: 1 }));
  if (!settled) await settle(rowsOf, stores);
  settled = true;
  const { milliseconds, host } = await timeLogits(rowsOf, stores);
  const drawn = await timeDrawn(rowsOf, stores);
  const gpu = await timeDevice();
  const { shape, weights } = options;
  const mixer = level > 0 ? options.mixer : 'default';
  const bytes = { weights: weightBytes(), states: batch * stateBytes(tokens) };
  const line = { test: 'decode', shape, mixer, level, weights, tokens, batch, bytes, milliseconds, host, drawn, gpu };
  console.log(JSON.stringify({ ...line, device: device.description, node: process.version }));
  for (const store of Object.values(stores)) store[Symbol.dispose]();
}
await device[Symbol.asyncDispose]();
process.exit();

function recordStep(step: Step, stores: Record<string, StateStore>): void {
  for (const layer of layers) step.run(layer, stores);
}

async function settle(rowsOf: (round: number) => Row[], stores: Record<string, StateStore>): Promise<void> {
  const rows = rowsOf(0);
  // The first step finds the sizes of scratch, the second records what stays.
  for (let n = 0; n < 2; n++) {
    using step = device.beginStep({ ids: new Int32Array(rows.length), rows });
    recordStep(step, stores);
    await step.submit();
  }
  const dispatches = layers.flatMap((layer) => (layer as WebgpuLayer).recordings.at(-1)!.dispatches);
  const end = performance.now() + 1000 * Number(options.settle);
  while (performance.now() < end) await time(dispatches, 10);
}

/** A step at a time; `host`: of these milliseconds, until the last command is with the driver. */
async function timeLogits(
  rowsOf: (round: number) => Row[],
  stores: Record<string, StateStore>,
): Promise<{ milliseconds: Statistics; host: Statistics }> {
  const samples: number[] = [];
  const recorded: number[] = [];
  for (let round = 0; round < rounds + warm; round++) {
    const rows = rowsOf(round);
    const start = performance.now();
    using step = device.beginStep({ ids: new Int32Array(rows.length).fill(1), rows });
    recordStep(step, stores);
    const submitted = step.submit();
    const handed = performance.now() - start;
    await device.download(step.value('logits'));
    await submitted;
    if (round < warm) continue;
    samples.push(performance.now() - start);
    recorded.push(handed);
  }
  return { milliseconds: statistics(samples), host: statistics(recorded) };
}

/** From one token on the host to the next, two steps under way. */
async function timeDrawn(rowsOf: (round: number) => Row[], stores: Record<string, StateStore>): Promise<Statistics> {
  const samples: number[] = [];
  let last: { readonly step: Step; readonly ids: Promise<unknown> } | undefined;
  let before = 0;
  for (let round = 0; round < rounds + warm; round++) {
    const rows = rowsOf(round);
    const step = device.beginStep({ ids: new Int32Array(rows.length), rows }, last && { ids: last.step.value('ids') });
    recordStep(step, stores);
    step.draw!(rows.map(() => ({ temperature: 0, uniform: 0 })));
    void step.submit();
    const ids = device.download(step.value('ids'));
    await last?.ids;
    const now = performance.now();
    if (round >= warm) samples.push(now - before);
    before = now;
    last?.step[Symbol.dispose]();
    last = { step, ids };
  }
  await last?.ids;
  last?.step[Symbol.dispose]();
  return statistics(samples);
}

/** Of the latest step's dispatches. */
async function timeDevice(): Promise<DeviceTimes> {
  const dispatches = layers.flatMap((layer) => (layer as WebgpuLayer).recordings.at(-1)!.dispatches);
  await time(dispatches, 3);
  const milliseconds = statistics(await time(dispatches, 20));
  const kinds = new Map<GPUComputePipeline, Dispatch[]>();
  for (const one of dispatches) kinds.set(one.pipeline, [...(kinds.get(one.pipeline) ?? []), one]);
  const kernels = [];
  for (const of of kinds.values()) {
    const without = statistics(
      await time(
        dispatches.filter((one) => !of.includes(one)),
        5,
      ),
    );
    const microseconds = (1000 * (milliseconds.median - without.median)) / of.length;
    kernels.push({ kernel: of[0]!.pipeline.label, grid: of[0]!.grid, count: of.length, microseconds });
  }
  return { milliseconds, dispatches: dispatches.length, kernels };
}

/** Of all products of a token, those of a shared block as often as they are run. */
function weightBytes(): number {
  const matrices = graphs.flatMap(({ nodes }) => nodes.flatMap((node) => (node.op === 'linear' ? node.weight : [])));
  return matrices.reduce((sum, name) => sum + bytesOf(format, elementCount(model.weights[name]!.shape)), 0);
}

/** Of one row. */
function stateBytes(tokens: number): number {
  const parts = new Map(graphs.flatMap(({ states }) => states.map((spec) => [spec.name, spec.parts] as const)));
  return [...parts.values()]
    .flat()
    .reduce(
      (sum, part) =>
        sum + elementCount(partShape(part, tokens)) * bytesPerElement[part.dtype === 'compute' ? type : part.dtype],
      0,
    );
}
