import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import { type ModelDescription, tapesOf } from '@dsla/models';
import { referenceBackend } from '@dsla/reference';
import {
  type AttentionLayer,
  type Device,
  fromFloat16,
  type Row,
  type StateStore,
  type WeightSource,
} from '@dsla/spec';
import { webgpuBackend } from '../src/index.js';
import { modelIn, tensorsOf } from './checkpoint.js';
import { randomWeights, synthetic } from './synthetic.js';
import { agreement, digest, highest } from './truth.js';

// Numbers of this adapter: a checkpoint against golden logits and against the reference's, then layers of real width in float16
// against float32 on the same adapter, long and short rows, every mixer, and folds against prefill.

const { values: options } = parseArgs({
  options: {
    checkpoint: { type: 'string' },
    vectors: { type: 'string' },
    /** Prompts of token ids, as a JSON list of lists; what the reference says of them (truth.ts): written if there is no such file. */
    ids: { type: 'string' },
    truth: { type: 'string' },
    /** A prompt in one step, or a token a step. */
    ways: { type: 'string', default: 'prefill,decode' },
    types: { type: 'string', default: 'f32,f16' },
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string', default: '2' },
    tokens: { type: 'string', default: '300' },
    software: { type: 'boolean', default: false },
  },
});
const types = options.types.split(',').map((type) => (options.software ? 'f32' : type)) as ('f32' | 'f16')[];
const tokens = Number(options.tokens);

const { checkpoint, vectors, ids, truth } = options;
if (checkpoint && ids && truth && !existsSync(truth)) {
  writeFileSync(truth, await reference(checkpoint, promptsOf(ids)));
  process.exit();
}
if (checkpoint && vectors) await golden(checkpoint, vectors);
if (checkpoint && ids && truth) await compare(checkpoint, promptsOf(ids), truth);
if (tokens > 0) await layers();

interface Model {
  readonly device: Device;
  readonly description: ModelDescription;
  readonly weights: WeightSource;
  readonly stores: Record<string, StateStore>;
  /** By mixer. */
  readonly layers: Map<string, AttentionLayer[]>;
}

async function load(
  computeType: 'f32' | 'f16',
  description: ModelDescription,
  weights: WeightSource,
  slots: number,
  capacity = 2 * tokens + 64,
): Promise<Model> {
  const device = await webgpuBackend.open({
    computeType,
    extra: { ...(options.software && { software: 'allow' }) },
  });
  return { device, description, weights, stores: storesOf(device, description, slots, capacity), layers: new Map() };
}

function storesOf(
  device: Device,
  description: ModelDescription,
  slots: number,
  capacity: number,
): Record<string, StateStore> {
  const stores: Record<string, StateStore> = {};
  for (const { states } of tapesOf(description))
    for (const spec of states) stores[spec.name] ??= device.createState(spec, slots, capacity);
  return stores;
}

function promptsOf(file: string): Int32Array[] {
  return (JSON.parse(readFileSync(file, 'utf8')) as number[][]).map((ids) => Int32Array.from(ids));
}

/** What is kept of the logits of the definition, in float64 inside. */
async function reference(folder: string, prompts: readonly Int32Array[]): Promise<Float32Array<ArrayBuffer>> {
  const model = modelIn(folder);
  await using device = await referenceBackend.open();
  const stores = storesOf(device, model.description, 1, longest(prompts));
  return await digests({ ...model, device, stores, layers: new Map() }, prompts, prefill);
}

/** Prompts one after the other. */
async function digests(
  model: Model,
  prompts: readonly Int32Array[],
  way: typeof prefill,
): Promise<Float32Array<ArrayBuffer>> {
  const { vocabulary } = model.description;
  const kept: number[] = [];
  for (const ids of prompts) {
    for (const store of Object.values(model.stores)) store.clear(0);
    let at = 0;
    for (const logits of await way(model, ids)) {
      kept.push(...digest(logits, vocabulary, at));
      at += logits.length / vocabulary;
    }
  }
  return Float32Array.from(kept);
}

/** A prompt in one step. */
async function prefill(model: Model, ids: Int32Array): Promise<Float32Array[]> {
  return [await feed(model, 'default', [{ slot: 0, past: 0, count: ids.length }], ids)];
}

/** The same, a token a step. */
async function decode(model: Model, ids: Int32Array): Promise<Float32Array[]> {
  const logits: Float32Array[] = [];
  for (let past = 0; past < ids.length; past++)
    logits.push(await feed(model, 'default', [{ slot: 0, past, count: 1 }], ids.subarray(past, past + 1)));
  return logits;
}

function longest(prompts: readonly Int32Array[]): number {
  return Math.max(...prompts.map(({ length }) => length));
}

/** Logits of every token on this adapter against the reference's. */
async function compare(folder: string, prompts: readonly Int32Array[], file: string): Promise<void> {
  const want = new Float32Array(new Uint8Array(readFileSync(file)).buffer);
  const { description, weights } = modelIn(folder);
  for (const type of types) {
    const model = await load(type, description, weights, 1, longest(prompts));
    for (const way of options.ways.split(',')) {
      const found = agreement(await digests(model, prompts, way === 'decode' ? decode : prefill), want);
      console.log(JSON.stringify({ test: 'reference', model: basename(folder), type, way, ...found }));
    }
    await model.device[Symbol.asyncDispose]();
  }
}

/** Logits of every token. */
async function feed(model: Model, mixer: string, rows: readonly Row[], ids: Int32Array): Promise<Float32Array> {
  const { device, stores } = model;
  const layers = await layersOf(model, mixer);
  using step = device.beginStep({ ids, rows });
  for (const layer of layers) step.run(layer, stores);
  const submitted = step.submit();
  const { data } = await device.download(step.value('logits'));
  await submitted;
  return data instanceof Uint16Array ? fromFloat16(data) : (data as Float32Array);
}

/** The layers of a model with a mixer, compiled once. */
async function layersOf({ device, description, weights, layers }: Model, mixer: string): Promise<AttentionLayer[]> {
  const known = layers.get(mixer);
  if (known) return known;
  const made: AttentionLayer[] = [];
  const graphs = description.segments.map(({ versions }) => versions[mixer] ?? versions.default);
  for (const graph of [...graphs, description.headAll]) made.push(await device.compile(graph, weights));
  layers.set(mixer, made);
  return made;
}

async function golden(folder: string, file: string): Promise<void> {
  const { description, weights } = modelIn(folder);
  const vectors = tensorsOf(file);
  const [ids, greedy] = ['ids', 'greedy'].map((name) => vectors.get(name)!.data as Int32Array) as [
    Int32Array,
    Int32Array,
  ];
  const want = vectors.get('logits')!.data as Float32Array;
  for (const type of types) {
    const model = await load(type, description, weights, 1, ids.length + greedy.length);
    const all = await feed(model, 'default', [{ slot: 0, past: 0, count: ids.length }], ids);
    const off = ratio(all.subarray(all.length - want.length), want);
    let next = highest(all.subarray(-description.vocabulary));
    let agree = 0;
    for (const [index, id] of greedy.entries()) {
      if (next === id) agree++;
      next = highest(
        await feed(model, 'default', [{ slot: 0, past: ids.length + index, count: 1 }], Int32Array.of(id)),
      );
    }
    console.log(
      JSON.stringify({
        test: 'golden',
        model: basename(folder),
        type,
        rms: off,
        greedy: `${agree} of ${greedy.length}`,
      }),
    );
    await model.device[Symbol.asyncDispose]();
  }
}

async function layers(): Promise<void> {
  const description = synthetic(options.shape, Number(options.layers));
  const models: Model[] = [];
  for (const type of types) models.push(await load(type, description, normal(description), 20));
  const [truth, subject] = models as [Model, Model];
  const few = Math.floor(tokens / 3);
  const rows = (past: number[], count: number[]): Row[] =>
    past.map((of, slot) => ({ slot, past: of, count: count[slot]! }));
  const many = Array.from({ length: 20 }, (_, slot) => slot);
  const steps: Record<string, Row[]> = {
    'two long rows': rows([0, 0], [tokens, few]),
    'short and long': rows([tokens, few], [1, 70]),
    'five tokens': rows([tokens + 1, few + 70], [2, 3]),
    'one token': rows([tokens + 3], [1]),
    'twenty rows': rows(
      many.map((slot) => (slot === 0 ? tokens + 4 : slot === 1 ? few + 73 : 0)),
      many.map((slot) => (slot % 2 === 0 ? 1 : 9)),
    ),
  };
  for (const mixer of ['default', ...description.mixers]) {
    for (const { stores } of models)
      for (const store of Object.values(stores)) for (let slot = 0; slot < 20; slot++) store.clear(slot);
    const found: Record<string, number> = {};
    for (const [name, batch] of Object.entries(steps)) {
      const ids = Int32Array.from(
        { length: batch.reduce((sum, { count }) => sum + count, 0) },
        (_, i) => (i * 37) % 999,
      );
      const want = await feed(truth, mixer, batch, ids);
      found[name] = ratio(await feed(subject, mixer, batch, ids), want);
    }
    console.log(JSON.stringify({ test: 'layers', mixer, rms: found }));
  }
  for (const mixer of Object.keys(description.folds)) console.log(JSON.stringify(await folded(subject, mixer)));
  for (const { device } of models) await device[Symbol.asyncDispose]();
}

/** The state of the first layer after a prefill, and folded from the cache of the same tokens. */
async function folded(model: Model, mixer: string): Promise<object> {
  const { device, description, weights, stores } = model;
  const fold = description.folds[mixer]![0]!;
  const ids = Int32Array.from({ length: tokens }, (_, i) => (i * 37) % 999);
  const rows = [{ slot: 0, past: 0, count: tokens }];
  const target = fold.states.find(({ kind }) => kind === 'dual')!.name;
  for (const store of Object.values(stores)) store.clear(0);
  await feed(model, mixer, rows, ids);
  const want = await stores[target]!.export(0);
  stores[target]!.clear(0);
  await feed(model, 'default', rows, ids);
  using step = device.beginStep({ ids: new Int32Array(0), rows: [{ slot: 0, past: tokens, count: 0 }] });
  step.run(await device.compile(fold, weights), stores);
  await step.submit();
  const got = await stores[target]!.export(0);
  return {
    test: 'fold',
    mixer,
    rms: got.map(({ data }, i) => ratio(data as Float32Array, want[i]!.data as Float32Array)),
  };
}

/** Norms near one, so that activations have the size of a trained model's. */
function normal(description: ModelDescription): WeightSource {
  const weights = randomWeights(description);
  return {
    spec: weights.spec,
    async read(name, as) {
      const tensor = await weights.read(name, 'f32');
      if (!name.includes('norm')) return as === 'f32' ? tensor : await weights.read(name, as);
      if (as !== 'f32') throw new Error(`${name} is read as ${as}`);
      return { ...tensor, data: (tensor.data as Float32Array).map((x) => 1 + x) };
    },
  };
}

function ratio(got: Float32Array, want: Float32Array): number {
  let [error, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    error += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return got.length === want.length ? Math.sqrt(error / size) : Number.NaN;
}
