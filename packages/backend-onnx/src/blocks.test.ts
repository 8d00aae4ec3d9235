import { referenceBackend } from '@dsla/reference';
import {
  type Device,
  type DualForm,
  dualState,
  f32,
  gateWidth,
  type HostTensor,
  kvState,
  type LayerGraph,
  type Node,
  type Row,
  toFloat16,
} from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openCApi } from './binding/c-api.js';
import { libraryPath } from './binding/choose.js';
import { OnnxDevice } from './device.js';
import { type Dialect, onCuda } from './dialect.js';

// Dual linear attention works on blocks of 128 tokens: prompts of several, and of whole ones and a rest, against the definition.

const heads = 4;
const headDim = 8;
const plain: DualForm = {
  states: 2,
  kvHeads: heads,
  headDim,
  gate: 'scalar',
  temperature: 16,
  normaliser: false,
  ropeInState: false,
};
const rope = { rotaryDim: headDim, frequencies: [1, 0.3, 0.1, 0.03] };
const foldable: DualForm = {
  ...plain,
  rope,
  normaliser: true,
  featureMap: { kind: 'exp', query: 'query features', key: 'key features' },
  exact: { window: 24, sinks: 2, logWeight: 'logWeight' },
};
const forms: readonly (readonly [string, DualForm])[] = [
  ['scalar gates', plain],
  ['scalar gates, two queries a head, rope in the state', { ...plain, kvHeads: heads / 2, rope, ropeInState: true }],
  ['scalar gates that close', { ...plain, temperature: 0.1 }],
  ['vector gates', { ...plain, gate: 'vector' }],
  ['vector gates, two queries a head', { ...plain, gate: 'vector', kvHeads: heads / 2 }],
  ['vector gates that close', { ...plain, gate: 'vector', temperature: 0.1 }],
  ['foldable', foldable],
  ['foldable, states outweigh the window', { ...foldable, exact: { ...foldable.exact!, logWeight: 'heavy' } }],
  ['foldable, two queries a head', { ...foldable, kvHeads: heads / 2 }],
];

/** Normal numbers, the same for every seed. */
function noise(length: number, seed: number, [mean, deviation]: readonly [number, number]): Float32Array {
  let state = seed * 2654435761;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes
    return (state + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length }, () => {
    const [a, b] = [uniform(), uniform()];
    return mean + deviation * Math.sqrt(-2 * Math.log(a)) * Math.cos(2 * Math.PI * b);
  });
}

function tape(form: DualForm): { readonly graph: LayerGraph; readonly widths: readonly number[] } {
  const widths = [heads * headDim, form.kvHeads * headDim, form.kvHeads * headDim, gateWidth(form)];
  const inputs = widths.map((width, at): Node => ({ op: 'input', name: `i${at}`, width }));
  const [q, k, v, gates] = [0, 1, 2, 3];
  const rest = { mix: 'mix', state: 's', heads, scale: headDim ** -0.5, form };
  const nodes: Node[] = [
    ...inputs,
    { op: 'dualLinearAttention', q, k, v, gates, ...rest },
    { op: 'output', name: 'o', x: 4 },
  ];
  return { graph: { name: 'dual', nodes, states: [dualState('s', form, headDim)] }, widths };
}

function weightsOf(form: DualForm) {
  const { kvHeads, states } = form;
  const shapes: Record<string, readonly number[]> = {
    mix: [1, states],
    logWeight: [heads],
    heavy: [heads],
    'query features': [heads, headDim, headDim],
    'key features': [kvHeads, headDim, headDim],
    gate: [gateWidth(form), kvHeads * headDim],
    bias: [gateWidth(form)],
  };
  return {
    spec: (name: string) => ({ storage: 'f32' as const, shape: shapes[name]! }),
    read: async (name: string, as: 'f32' | 'f16'): Promise<HostTensor> => {
      const shape = shapes[name]!;
      const length = shape.reduce((a, b) => a * b, 1);
      const data = noise(length, name.length, [name === 'heavy' ? 12 : 0, 0.5]);
      return as === 'f32' ? f32(shape, data) : { dtype: as, shape, data: toFloat16(data) };
    },
  };
}

/** What rows of some lengths, one after the other, give, and the state after the last. */
async function run(on: Device, form: DualForm, lengths: readonly number[]): Promise<readonly Float32Array[]> {
  const { graph, widths } = tape(form);
  using layer = await on.compile(graph, weightsOf(form));
  using state = on.createState(graph.states[0]!, 1, 1);
  const results: Float32Array[] = [];
  let past = 0;
  for (const count of lengths) {
    const of = (width: number, at: number) => noise(count * width, past + at + 1, at === 3 ? [1, 2] : [0, 1]);
    const values = Object.fromEntries(
      widths.map((width, at) => [`i${at}`, on.upload(f32([count, width], of(width, at)))] as const),
    );
    const row: Row = { slot: 0, past, count };
    using step = on.beginStep({ ids: new Int32Array(count), rows: [row] }, values);
    step.run(layer, { s: state });
    await step.submit();
    results.push((await on.download(step.value('o'))).data as Float32Array);
    for (const value of Object.values(values)) value[Symbol.dispose]();
    past += count;
  }
  for (const { data } of await state.export(0)) results.push(data as Float32Array);
  return results;
}

/** The states that a cache of so many tokens gives. */
async function fold(on: Device, form: DualForm, count: number): Promise<readonly Float32Array[]> {
  const widths = [heads * headDim, form.kvHeads * headDim, form.kvHeads * headDim];
  const { kvHeads } = form;
  const node = {
    q: 0,
    k: 1,
    v: 2,
    state: 'kv',
    heads,
    kvHeads,
    headDim,
    scale: 0.3,
    ...(form.rope && { rope: form.rope }),
  };
  const [kv, s] = [kvState('kv', node), dualState('s', form, headDim)];
  const inputs = widths.map((width, at): Node => ({ op: 'input', name: `i${at}`, width }));
  const attention: LayerGraph = {
    name: 'attention',
    nodes: [...inputs, { op: 'softmaxAttention', ...node }, { op: 'output', name: 'o', x: 3 }],
    states: [kv],
  };
  const rest = { from: 'kv', to: 's', gateSource: 'value', gateWeight: 'gate', gateBias: 'bias', form } as const;
  const folding: LayerGraph = { name: 'fold', nodes: [{ op: 'foldState', ...rest }], states: [kv, s] };
  using fill = await on.compile(attention, weightsOf(form));
  using layer = await on.compile(folding, weightsOf(form));
  using cache = on.createState(kv, 1, count);
  using state = on.createState(s, 1, 1);
  const values = Object.fromEntries(
    widths.map(
      (width, at) => [`i${at}`, on.upload(f32([count, width], noise(count * width, at + 1, [0, 1])))] as const,
    ),
  );
  using step = on.beginStep({ ids: new Int32Array(count), rows: [{ slot: 0, past: 0, count }] }, values);
  step.run(fill, { kv: cache });
  await step.submit();
  using second = on.beginStep({ ids: new Int32Array(0), rows: [{ slot: 0, past: count, count: 0 }] });
  second.run(layer, { kv: cache, s: state });
  await second.submit();
  for (const value of Object.values(values)) value[Symbol.dispose]();
  return (await state.export(0)).map(({ data }) => data as Float32Array);
}

function ratio(got: Float32Array, want: Float32Array): number {
  const square = (values: Float32Array): number => values.reduce((sum, x) => sum + x * x, 0);
  return Math.sqrt(square(want.map((x, at) => x - got[at]!)) / (square(want) || 1));
}

async function open(dialect: Dialect): Promise<OnnxDevice> {
  const binding = await openCApi(libraryPath(), { threads: 2, packs: false });
  return new OnnxDevice(Object.assign(binding, { dialect: { ...dialect, replays: false } }));
}

const cases = [
  { type: 'float', most: 1e-5 },
  { type: 'float16', most: 5e-3 },
] as const;

describe.each(cases)('in blocks, $type', ({ type, most }) => {
  let device: OnnxDevice;
  let reference: Device;
  beforeAll(async () => {
    device = await open(onCuda(type));
    reference = await referenceBackend.open();
  });
  afterAll(async () => {
    await device[Symbol.asyncDispose]();
    await reference[Symbol.asyncDispose]();
  });

  it.each(forms)('%s: a prompt of three blocks and a rest, a short one, a token', async (_, form) => {
    const lengths = [3 * 128 + 37, 20, 1];
    const [got, want] = [await run(device, form, lengths), await run(reference, form, lengths)];
    for (const [part, values] of got.entries()) expect(ratio(values, want[part]!), `part ${part}`).toBeLessThan(most);
  });

  it.each(forms)('%s: a cache of three blocks and a rest becomes states', async (_, form) => {
    const [got, want] = [await fold(device, form, 3 * 128 + 37), await fold(reference, form, 3 * 128 + 37)];
    for (const [part, values] of got.entries()) expect(ratio(values, want[part]!), `part ${part}`).toBeLessThan(most);
  });
});
