import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { bindWeights, describe, type ModelDescription, parseConfig, tapesOf } from '@dsla/models';
import { referenceBackend } from '@dsla/reference';
import { type Device, fromFloat16, type HostTensor, type Row, type StateStore, type WeightSource } from '@dsla/spec';
import { webgpuBackend } from '../src/index.js';
import { randomWeights, synthetic } from './synthetic.js';

// Numbers of this adapter: a checkpoint against golden logits and against the reference's, then layers of real width in float16
// against float32 on the same adapter, long and short rows, every mixer, and folds against prefill.

const { values: options } = parseArgs({
  options: {
    checkpoint: { type: 'string' },
    vectors: { type: 'string' },
    /** Token ids, as a JSON list; their logits by the reference, [tokens, vocabulary] float32: written if there is no such file. */
    ids: { type: 'string' },
    truth: { type: 'string' },
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string', default: '2' },
    tokens: { type: 'string', default: '300' },
    software: { type: 'boolean', default: false },
  },
});
const types = options.software ? (['f32', 'f32'] as const) : (['f32', 'f16'] as const);
const tokens = Number(options.tokens);

const { checkpoint, vectors, ids, truth } = options;
if (checkpoint && ids && truth && !existsSync(truth)) {
  writeFileSync(truth, await reference(checkpoint, idsOf(ids)));
  process.exit();
}
if (checkpoint && vectors) await golden(checkpoint, vectors);
if (checkpoint && ids && truth) await compare(checkpoint, idsOf(ids), truth);
await layers();

interface Model {
  readonly device: Device;
  readonly description: ModelDescription;
  readonly weights: WeightSource;
  readonly stores: Record<string, StateStore>;
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
  return { device, description, weights, stores: storesOf(device, description, slots, capacity) };
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

function idsOf(file: string): Int32Array {
  return Int32Array.from(JSON.parse(readFileSync(file, 'utf8')) as number[]);
}

function modelIn(folder: string): Pick<Model, 'description' | 'weights'> {
  const description = describe(parseConfig(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))));
  return { description, weights: bindWeights(description, reader(join(folder, 'model.safetensors'))) };
}

/** Logits of every token by the definition, in float64 inside. */
async function reference(folder: string, ids: Int32Array): Promise<Float32Array> {
  const { description, weights } = modelIn(folder);
  await using device = await referenceBackend.open();
  const stores = storesOf(device, description, 1, ids.length);
  return await feed(
    { device, description, weights, stores },
    'default',
    [{ slot: 0, past: 0, count: ids.length }],
    ids,
  );
}

/**
 * Logits of every token on this adapter against the reference's: RMS ratio and RMS of the differences, at how many the same
 * token is first, and by how much the reference has another one first elsewhere.
 */
async function compare(folder: string, ids: Int32Array, file: string): Promise<void> {
  const want = new Float32Array(new Uint8Array(readFileSync(file)).buffer);
  const { description, weights } = modelIn(folder);
  const { vocabulary } = description;
  for (const type of types) {
    const model = await load(type, description, weights, 1, ids.length);
    const got = await feed(model, 'default', [{ slot: 0, past: 0, count: ids.length }], ids);
    const others = [];
    for (let t = 0; t < ids.length; t++) {
      const [own, truth] = [got, want].map((all) => all.subarray(t * vocabulary, (t + 1) * vocabulary));
      const [first, should] = [argmax(own!), argmax(truth!)];
      if (first !== should) others.push({ token: t, margin: truth![should]! - truth![first]! });
    }
    const [tokens, error] = [ids.length, rms(got.map((x, i) => x - want[i]!))];
    const same = { tokens, rms: ratio(got, want), error, first: tokens - others.length, others };
    console.log(JSON.stringify({ test: 'reference', type, ...same }));
    await model.device[Symbol.asyncDispose]();
  }
}

/** Logits of every token. */
async function feed(model: Model, mixer: string, rows: readonly Row[], ids: Int32Array): Promise<Float32Array> {
  const { device, description, weights, stores } = model;
  using step = device.beginStep({ ids, rows });
  for (const { versions } of description.segments)
    step.run(await device.compile(versions[mixer] ?? versions.default, weights), stores);
  step.run(await device.compile(description.headAll, weights), stores);
  const submitted = step.submit();
  const { data } = await device.download(step.value('logits'));
  await submitted;
  return data instanceof Uint16Array ? fromFloat16(data) : (data as Float32Array);
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
    const model = await load(type, description, weights, 1);
    const all = await feed(model, 'default', [{ slot: 0, past: 0, count: ids.length }], ids);
    const off = ratio(all.subarray(all.length - want.length), want);
    let next = argmax(all.subarray(-description.vocabulary));
    let agree = 0;
    for (const [index, id] of greedy.entries()) {
      if (next === id) agree++;
      next = argmax(await feed(model, 'default', [{ slot: 0, past: ids.length + index, count: 1 }], Int32Array.of(id)));
    }
    console.log(JSON.stringify({ test: 'golden', type, rms: off, greedy: `${agree} of ${greedy.length}` }));
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

function tensorsOf(file: string): Map<string, HostTensor> {
  const bytes = readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const tensors = new Map<string, HostTensor>();
  for (const [name, entry] of Object.entries(JSON.parse(bytes.toString('utf8', 8, start)))) {
    if (name === '__metadata__') continue;
    const {
      dtype,
      shape,
      data_offsets: at,
    } = entry as {
      dtype: string;
      shape: number[];
      data_offsets: [number, number];
    };
    const data = Uint8Array.from(bytes.subarray(start + at[0], start + at[1])).buffer;
    if (dtype === 'F16') tensors.set(name, { dtype: 'f16', shape, data: new Uint16Array(data) });
    else if (dtype === 'F32') tensors.set(name, { dtype: 'f32', shape, data: new Float32Array(data) });
    else tensors.set(name, { dtype: 'i32', shape, data: new Int32Array(data) });
  }
  return tensors;
}

/** Whole float16 tensors, which is what the checkpoint of a Llama needs. */
function reader(file: string): Parameters<typeof bindWeights>[1] {
  const tensors = tensorsOf(file);
  return {
    tensors: new Map([...tensors].map(([name, { dtype, shape }]) => [name, { storage: dtype, shape }])),
    async readFloats(name, { as }) {
      const tensor = tensors.get(name)!;
      return as === 'f16' ? tensor : { ...tensor, dtype: 'f32', data: fromFloat16(tensor.data as Uint16Array) };
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

function rms(x: Float32Array): number {
  return Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length);
}

function argmax(x: Float32Array): number {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i]! > x[best]!) best = i;
  return best;
}
