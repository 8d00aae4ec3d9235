import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { referenceBackend } from '@dsla/reference';
import {
  type Device,
  type DualForm,
  dualState,
  f32,
  featureWidth,
  fromFloat16,
  gateWidth,
  type LayerGraph,
  type Node,
  toFloat16,
} from '@dsla/spec';
import koffi from 'koffi';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { emulated, type Memory, ratio, runs, withWhat } from '../../test/emulate.js';
import { compilerLibrary, openCompiler } from './compile.js';
import { replayOperator } from './dual-fold.js';
import { absorbOperator, dualOperator, takesDual } from './dual-operator.js';
import { dualStepOperator } from './dual-step.js';

// The kernels as C++ on the CPU (test/emulate.h) against the definition: prompts of several chunks that begin where the last ended.

const heads = 2;
const [headDim, rows] = [24, 8];
const plain: DualForm = {
  states: 2,
  kvHeads: 1,
  headDim,
  gate: 'scalar',
  temperature: 4,
  normaliser: false,
  ropeInState: false,
};
const rope = { rotaryDim: 16, frequencies: Array.from({ length: 8 }, (_, pair) => 0.5 ** pair) };
const foldable: DualForm = {
  ...plain,
  rope,
  normaliser: true,
  featureMap: { kind: 'exp', query: 'mapQ', key: 'mapK' },
  exact: { window: 24, sinks: 2, logWeight: 'logWeight' },
};
const forms: readonly (readonly [string, DualForm])[] = [
  ['scalar gates', plain],
  ['vector gates', { ...plain, gate: 'vector', kvHeads: 2 }],
  ['vector gates that close', { ...plain, gate: 'vector', temperature: 0.05, states: 1 }],
  ['foldable', foldable],
  ['foldable, rope in the state', { ...foldable, ropeInState: true, kvHeads: 2 }],
];

/** float16 numbers, the same for every seed. */
function numbers(length: number, seed: number, mean = 0, spread = 1): Float32Array {
  return fromFloat16(
    toFloat16(Float32Array.from({ length }, (_, at) => mean + spread * Math.sin(seed * 1e3 + at * 12.9898) * 1.4)),
  );
}

const shapesOf = (form: DualForm): Readonly<Record<string, readonly number[]>> => ({
  mix: [1, form.states],
  logWeight: [heads],
  mapQ: [heads, rows, headDim],
  mapK: [form.kvHeads, rows, headDim],
});
const weight = (name: string, shape: readonly number[]): Float32Array =>
  numbers(
    shape.reduce((a, b) => a * b, 1),
    name.length,
    0,
    0.4,
  );
const widthsOf = (form: DualForm): readonly number[] => [
  heads * headDim,
  form.kvHeads * headDim,
  form.kvHeads * headDim,
  gateWidth(form),
];
/** q, k, v and gates of tokens from `past` on. */
const tokensOf = (form: DualForm, past: number, count: number): Float32Array[] =>
  widthsOf(form).map((width, at) => numbers(count * width, past + at + 1, at === 3 ? 1 : 0));

/** Outputs of prompts that follow one another, and the parts of the state after the last. */
async function defined(device: Device, form: DualForm, lengths: readonly number[]): Promise<Float32Array[]> {
  const inputs = widthsOf(form).map((width, at): Node => ({ op: 'input', name: `i${at}`, width }));
  const own = { mix: 'mix', state: 's', heads, scale: 0.3, form };
  const graph: LayerGraph = {
    name: 'dual',
    nodes: [
      ...inputs,
      { op: 'dualLinearAttention', q: 0, k: 1, v: 2, gates: 3, ...own },
      { op: 'output', name: 'o', x: 4 },
    ],
    states: [dualState('s', form, rows)],
  };
  const shapes = shapesOf(form);
  using layer = await device.compile(graph, {
    spec: (name) => ({ storage: 'f32', shape: shapes[name]! }),
    read: async (name) => f32(shapes[name]!, weight(name, shapes[name]!)),
  });
  using state = device.createState(graph.states[0]!, 1, 1);
  const results: Float32Array[] = [];
  let past = 0;
  for (const count of lengths) {
    const given = tokensOf(form, past, count).map((data, at) => device.upload(f32([count, widthsOf(form)[at]!], data)));
    const values = Object.fromEntries(given.map((value, at) => [`i${at}`, value] as const));
    using step = device.beginStep({ ids: new Int32Array(count), rows: [{ slot: 0, past, count }] }, values);
    step.run(layer, { s: state });
    await step.submit();
    results.push((await device.download(step.value('o'))).data as Float32Array);
    past += count;
  }
  return [...results, ...(await state.export(0)).map(({ data }) => data as Float32Array)];
}

/** The same by operators: `operatorOf` a prompt's length. */
function computed(
  form: DualForm,
  lengths: readonly number[],
  run: (length: number, memory: Memory) => void,
): Float32Array[] {
  const features = featureWidth(form, rows);
  const spec = dualState('s', form, rows);
  const sizes = spec.parts.map(({ shape }) => shape.reduce<number>((a, b) => a * Number(b), 1));
  const [state, keys, values, gates] = sizes.map((size, part) =>
    part === 0 || part === 3 ? new Float32Array(size) : new Uint16Array(size),
  );
  const positions = lengths.reduce((a, b) => a + b, 0);
  const angles = (of: (x: number) => number): Float32Array =>
    Float32Array.from({ length: positions * 8 }, (_, at) => of(Math.floor(at / 8) * rope.frequencies[at % 8]!));
  const shapes = shapesOf(form);
  const half = (x: Float32Array): Uint16Array => toFloat16(x);
  const results: Float32Array[] = [];
  let past = 0;
  for (const count of lengths) {
    const [q, k, v, g] = tokensOf(form, past, count) as [Float32Array, Float32Array, Float32Array, Float32Array];
    const turn = (x: Float32Array): Float32Array => (form.rope ? rotated(x, past, x.length / count) : x);
    const inState = (x: Float32Array): Float32Array => (form.ropeInState && count > 1 ? turn(x) : x);
    const o = new Uint16Array(q.length);
    const room = (length: number): Float32Array => new Float32Array(length).fill(Number.NaN);
    run(count, {
      q: half(inState(q)),
      k: half(inState(k)),
      v: half(v),
      gates: half(g),
      turnedQ: half(turn(q)),
      turnedK: half(turn(k)),
      past: BigInt64Array.of(BigInt(past)),
      mix: weight('mix', shapes.mix!),
      logWeight: weight('logWeight', shapes.logWeight!),
      mapQ: half(weight('mapQ', shapes.mapQ!)),
      mapK: half(weight('mapK', shapes.mapK!)),
      cosines: angles(Math.cos),
      sines: angles(Math.sin),
      ...{ before: state!, after: state!, o },
      ...(keys && {
        ringKeys: keys,
        keptKeys: keys,
        ringValues: values!,
        keptValues: values!,
        ringGates: gates!,
        keptGates: gates!,
      }),
      ...Object.fromEntries(
        ['decays', 'starts', 'sums', 'phiQ', 'phiK', 'value', 'fades', 'exact', 'shares', 'parts'].map((name) => [
          name,
          room((count + 64) * heads * features * form.states * headDim),
        ]),
      ),
    });
    results.push(fromFloat16(o));
    past += count;
  }
  return [
    ...results,
    state as Float32Array,
    ...(keys ? [fromFloat16(keys as Uint16Array), fromFloat16(values as Uint16Array), gates as Float32Array] : []),
  ];
}

/** Heads of tokens [count, width] from `past` on, turned by the rope. */
function rotated(x: Float32Array, past: number, width: number): Float32Array {
  return x.map((own, at) => {
    const channel = at % headDim;
    if (channel >= 16) return own;
    const angle = (past + Math.floor(at / width)) * rope.frequencies[channel % 8]!;
    return channel < 8
      ? own * Math.cos(angle) - x[at + 8]! * Math.sin(angle)
      : own * Math.cos(angle) + x[at - 8]! * Math.sin(angle);
  });
}

describe.skipIf(!runs)(`kernels of dual linear attention (${withWhat})`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-kernels-'));
  let reference: Device;
  beforeAll(async () => {
    reference = await referenceBackend.open();
  });
  afterAll(async () => {
    await reference[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });

  it.each(forms)('%s: prompts of chunks and a rest, then tokens', async (_, form) => {
    const features = featureWidth(form, form.featureMap && rows);
    const of = { heads, form, features, scale: 0.3, mixPerHead: false };
    expect(takesDual(of)).toBe(true);
    const prompt = emulated(dualOperator({ ...of, reads: true }), folder);
    const step = form.exact ? emulated(dualStepOperator(of), folder) : undefined;
    const lengths = [150, 70, 9, ...(step ? [1, 1] : [])];
    const sizes = { rows: 1, states: form.states, positions: 1000 };
    const got = computed(form, lengths, (tokens, memory) =>
      (step && tokens === 1 ? step : prompt)(memory, { ...sizes, tokens }),
    );
    const want = await defined(reference, form, lengths);
    expect(got).toHaveLength(want.length);
    for (const [part, values] of got.entries()) expect(ratio(values, want[part]!), `part ${part}`).toBeLessThan(2e-3);
  });

  const folding = forms.filter(([, { exact, ropeInState }]) => !exact || !ropeInState);
  it.each(folding)(
    '%s: tokens that enter from zero, and some beyond them that do not',
    async (_, { exact: _exact, rope: _rope, ...form }) => {
      const features = featureWidth(form, form.featureMap && rows);
      const count = 131;
      const [, k, v, gates] = tokensOf(form, 0, count).map((x) => toFloat16(Float32Array.of(...x, ...x)));
      const after = new Float32Array(form.states * form.kvHeads * features * (headDim + Number(form.normaliser)));
      const mapK = toFloat16(weight('mapK', shapesOf(form).mapK!));
      const room = () => new Float32Array(2 * count * form.kvHeads * features * form.states);
      const run = emulated(absorbOperator(form, features), folder);
      const past = BigInt64Array.of(BigInt(count));
      run({ k: k!, v: v!, gates: gates!, past, mapK, after, decays: room(), phiK: room() }, { tokens: 2 * count });
      expect(ratio(after, (await defined(reference, form, [count]))[1]!)).toBeLessThan(1e-3);
    },
  );

  it('a cache gives keys without their rotation, and zeros beyond what entered', () => {
    const { kvHeads } = foldable;
    const [count, tokens, entries] = [30, 40, 50];
    const [width, first] = [kvHeads * headDim, 5];
    const [plainKeys, values] = [numbers(entries * width, 1), numbers(entries * width, 2)];
    const cached = (x: Float32Array): Uint16Array =>
      toFloat16(
        x.map(
          (_, at) =>
            x[
              (Math.floor(at / headDim) % entries) * width +
                Math.floor(at / headDim / entries) * headDim +
                (at % headDim)
            ]!,
        ),
      );
    const [plain, v] = [new Uint16Array(tokens * width), new Uint16Array(tokens * width)];
    const angles = (of: (x: number) => number): Float32Array =>
      Float32Array.from({ length: entries * 8 }, (_, at) => of(Math.floor(at / 8) * rope.frequencies[at % 8]!));
    const operator = replayOperator(foldable);
    const run = emulated(
      {
        ...operator,
        inputNames: ['keys', 'values', 'positions', 'count', 'cosines', 'sines'],
        outputNames: ['plain', 'v'],
      },
      folder,
    );
    const positions = BigInt64Array.from({ length: tokens }, (_, at) => BigInt(first + at));
    const keys = cached(rotated(plainKeys, 0, width));
    const given = {
      positions,
      count: BigInt64Array.of(BigInt(count)),
      cosines: angles(Math.cos),
      sines: angles(Math.sin),
    };
    run({ keys, values: cached(values), ...given, plain, v }, { entries, tokens, positions: entries });
    const entered = (x: Float32Array): Float32Array =>
      Float32Array.from({ length: tokens * width }, (_, at) => (at < count * width ? x[first * width + at]! : 0));
    expect(ratio(fromFloat16(plain), entered(plainKeys))).toBeLessThan(1e-3);
    expect(fromFloat16(v)).toEqual(entered(values));
  });
});

const library = [13, 12].map(compilerLibrary).find((name) => {
  try {
    return koffi.load(name);
  } catch {
    return false;
  }
});
const withNvrtc = library ?? 'skipped: the loader finds no libnvrtc';

describe.skipIf(library === undefined)(`CUDA C of dual linear attention (${withNvrtc})`, () => {
  const wide = { kvHeads: 32, headDim: 128 };
  const large = { heads: 32, scale: 0.1, mixPerHead: true };
  const operators = [
    dualOperator({ ...large, reads: true, form: { ...plain, ...wide }, features: 128 }),
    dualOperator({ ...large, reads: true, form: { ...plain, ...wide, gate: 'vector' }, features: 128 }),
    dualOperator({ ...large, reads: true, form: { ...foldable, ...wide }, features: 256 }),
    dualStepOperator({ ...large, form: { ...foldable, ...wide }, features: 256 }),
    absorbOperator({ ...foldable, ...wide }, 256),
    replayOperator(foldable),
  ];

  it.each(operators)('$name becomes machine code', async ({ name, source }) => {
    const nvrtc = await openCompiler(library!);
    expect((await nvrtc.compile(name, source, 'sm_90a')).length).toBeGreaterThan(0);
  });

  it.each(operators)('$name fits into what ONNX Runtime is told', ({ name }) => {
    expect(name.length).toBeLessThan(240); // operators.js
  });
});
