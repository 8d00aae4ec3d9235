import { parseArgs } from 'node:util';
import type { AttentionLayer, Row, StateStore } from '@dsla/spec';
import { webgpuBackend } from '../src/index.js';
import { randomWeights, type Statistics, statistics, synthetic } from './synthetic.js';

// Prefill and decode of a whole model with random weights. One JSON object a line on stdout; see README.md.

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string' },
    mixer: { type: 'string', default: 'default' },
    /** The first layers take the mixer, the others softmax attention: all by default. */
    levels: { type: 'string', default: '999' },
    prefill: { type: 'string', default: '2048,4096,8192' },
    decode: { type: 'string', default: '512,4096,16384' },
    batch: { type: 'string', default: '1' },
    /** Tokens of a cache whose first layer is folded into the mixer's states. */
    fold: { type: 'string', default: '' },
    rounds: { type: 'string', default: '10' },
    /** Seconds of work before the first time is taken. */
    warm: { type: 'string', default: '3' },
    /** Of the matrices: f16, q8, q4. */
    weights: { type: 'string' },
    software: { type: 'boolean', default: false },
  },
});

const numbers = (text: string): number[] => text.split(',').filter(Boolean).map(Number);
const batch = Number(options.batch);
const rounds = Number(options.rounds);
const [prefills, depths, folds] = [numbers(options.prefill), numbers(options.decode), numbers(options.fold)];
const capacity = Math.max(...prefills, ...folds, ...depths.map((depth) => depth + 64));

await using device = await webgpuBackend.open({
  extra: {
    ...(options.weights && { weights: options.weights }),
    ...(options.software && { software: 'allow' }),
  },
});
const model = synthetic(options.shape, options.layers ? Number(options.layers) : undefined);
const stores: Record<string, StateStore> = {};
const levels = numbers(options.levels).map((level) => ({ level, layers: [] as AttentionLayer[] }));
for (const one of levels) one.layers.push(...(await build(one.level)));
console.error(`${device.description}: ${(device.memory().bytes / 2 ** 30).toFixed(2)} GiB`);

const [first] = [...prefills, 512];
for (const start = performance.now(); performance.now() - start < 1000 * Number(options.warm); )
  await run(levels[0]!.layers, [{ slot: 0, past: 0, count: first! }]);
for (const { level, layers } of levels) {
  for (const count of prefills)
    report('prefill', count, level, await time(layers, (_, row) => [{ slot: row, past: 0, count }], 1));
  for (const depth of depths) {
    const samples = await time(layers, (round, row) => [{ slot: row, past: depth + round, count: 1 }], batch);
    report('decode', depth, level, samples);
  }
}
for (const tokens of folds) report('fold', tokens, 1, await timeFold(tokens));

/** The segments of the model, of which the first `level` layers have the mixer. */
async function build(level: number): Promise<AttentionLayer[]> {
  const source = randomWeights(model);
  const graphs = [
    ...model.segments.map(({ versions, layer }) => {
      const mixer = layer !== undefined && layer < level ? options.mixer : 'default';
      return versions[mixer] ?? versions.default;
    }),
    model.head,
  ];
  const made: AttentionLayer[] = [];
  for (const graph of graphs) {
    made.push(await device.compile(graph, source));
    for (const spec of graph.states) stores[spec.name] ??= device.createState(spec, batch, capacity);
  }
  return made;
}

/** Milliseconds of steps, from recording to the logits on the host. */
async function time(
  layers: readonly AttentionLayer[],
  rowsOf: (round: number, row: number) => Row[],
  rows: number,
): Promise<Statistics & { samples: number[] }> {
  const samples: number[] = [];
  for (let round = 0; round < rounds + 2; round++) {
    const all = Array.from({ length: rows }, (_, row) => rowsOf(round, row)).flat();
    const milliseconds = await run(layers, all);
    if (round >= 2) samples.push(milliseconds); // two rounds of another length
  }
  return { ...statistics(samples), samples };
}

/** Milliseconds of one step. */
async function run(layers: readonly AttentionLayer[], rows: readonly Row[]): Promise<number> {
  const ids = new Int32Array(rows.reduce((sum, { count }) => sum + count, 0)).fill(1);
  const start = performance.now();
  using step = device.beginStep({ ids, rows });
  for (const layer of layers) step.run(layer, stores);
  const submitted = step.submit();
  await device.download(step.value('logits'));
  await submitted;
  return performance.now() - start;
}

/** Milliseconds of the fold of one layer's cache. */
async function timeFold(past: number): Promise<Statistics> {
  const graph = model.folds[options.mixer]![0]!;
  const layer = await device.compile(graph, randomWeights(model));
  for (const spec of graph.states) stores[spec.name] ??= device.createState(spec, batch, capacity);
  const samples: number[] = [];
  for (let round = 0; round < rounds + 2; round++) {
    const start = performance.now();
    using step = device.beginStep({ ids: new Int32Array(0), rows: [{ slot: 0, past, count: 0 }] });
    step.run(layer, stores);
    await step.submit();
    if (round >= 2) samples.push(performance.now() - start);
  }
  return statistics(samples);
}

function report(test: string, tokens: number, level: number, milliseconds: Statistics): void {
  const { shape, mixer } = options;
  const line = { test, tokens, batch: test === 'decode' ? batch : 1, shape, mixer, level, milliseconds };
  console.log(JSON.stringify({ ...line, device: device.description, node: process.version }));
}
