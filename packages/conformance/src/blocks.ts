import type { Value } from '@dsla/spec';
import {
  type AttentionShape,
  attend,
  attendDual,
  convolve,
  type DualShape,
  foldTape,
  ropeOf,
  scan,
} from './mechanisms.js';
import { type Tape, type TapeBuilder, tape } from './tape.js';

// Half-blocks as real models have them, at sizes of a few dozen, written here from their papers so that the suite does not
// depend on the package that describes models.

export const width = 24;
const vocabulary = 29;

export const attention: AttentionShape = { heads: 4, kvHeads: 2, headDim: 8, rope: ropeOf(8) };
export const windowed: AttentionShape = { ...attention, window: { size: 8, sinks: 2 } };
export const foldable: DualShape = {
  ...attention,
  states: 2,
  gate: 'scalar',
  features: 8,
  normaliser: true,
  exact: { window: 8, sinks: 2 },
};
export const published: DualShape = { heads: 3, kvHeads: 3, headDim: 8, states: 2, gate: 'vector' };

export const embedding: Tape = tape('embedding', (t) => {
  const x = t.push({ op: 'embed', table: t.weight('embedding', [vocabulary, width], { std: 1 }) });
  t.output('x', x);
  t.output('embedded', x);
});

/** Logits of every token. */
export const headAll: Tape = tape('headAll', (t) => {
  t.output('logits', t.linear(t.rmsNorm(t.input('x', width), 'final', width), 'embedding', vocabulary, width));
});

/** Logits of every row's last token. */
export const head: Tape = tape('head', (t) => {
  const last = t.push({ op: 'lastToken', x: t.input('x', width) });
  t.output('last', t.linear(t.rmsNorm(last, 'final', width), 'embedding', vocabulary, width));
});

/** Llama: x + attention(norm(x)), with any mechanism in the middle. */
export function mixer(name: string, shape: AttentionShape | DualShape, gateSource: 'hidden' | 'value' = 'value'): Tape {
  return tape(name, (t) => {
    const x = t.input('x', width);
    const { q, k, v, normed } = project(t, name, shape, x);
    const gated = gateSource === 'hidden' ? normed : v;
    t.output('x', t.push({ op: 'add', a: x, b: close(t, name, shape, mechanism(t, name, shape, q, k, v, gated)) }));
  });
}

function project(t: TapeBuilder, name: string, { heads, kvHeads, headDim }: AttentionShape, x: Value) {
  const normed = t.rmsNorm(x, `${name}.norm`, width);
  return {
    normed,
    q: t.linear(normed, `${name}.q`, heads * headDim, width),
    k: t.linear(normed, `${name}.k`, kvHeads * headDim, width),
    v: t.linear(normed, `${name}.v`, kvHeads * headDim, width),
  };
}

function mechanism(
  t: TapeBuilder,
  name: string,
  shape: AttentionShape | DualShape,
  q: Value,
  k: Value,
  v: Value,
  gated: Value,
) {
  if (!('states' in shape)) return attend(t, shape, `${name}.kv`, q, k, v);
  const { states, kvHeads, headDim, gate } = shape;
  const from = gated === v ? kvHeads * headDim : width;
  const gates = t.linear(gated, 'dual.gates', states * kvHeads * (gate === 'vector' ? headDim : 1), from, {
    mean: 2,
    std: 2,
  });
  return attendDual(t, shape, `${name}.dual`, { q, k, v, gates });
}

function close(t: TapeBuilder, name: string, { heads, headDim }: AttentionShape, o: Value): Value {
  return t.linear(o, `${name}.o`, width, heads * headDim);
}

/** x + down(act(gate(norm(x))) * up(norm(x))) */
export function feedForward(name: string, fn: 'silu' | 'gelu' = 'silu', inner = 40): Tape {
  return tape(name, (t) => {
    const x = t.input('x', width);
    t.output('x', t.push({ op: 'add', a: x, b: gated(t, name, t.rmsNorm(x, `${name}.norm`, width), fn, inner) }));
  });
}

function gated(t: TapeBuilder, name: string, x: Value, fn: 'silu' | 'gelu', inner: number): Value {
  const gate = t.push({ op: 'activate', x: t.linear(x, `${name}.gate`, inner, width), fn });
  const up = t.linear(x, `${name}.up`, inner, width);
  return t.linear(t.push({ op: 'mul', a: gate, b: up }), `${name}.down`, width, inner);
}

/** Zamba's Mamba-1 layer: x + mamba(norm(x + transformer)), `transformer` being absent in a plain layer. */
export function mamba(name: string, hybrid = false): Tape {
  return tape(name, (t) => {
    const x = t.input('x', width);
    const into = hybrid ? t.push({ op: 'add', a: x, b: sharedBlock(t, x) }) : x;
    const mixed = mambaMixer(t, name, t.rmsNorm(into, `${name}.norm`, width));
    t.output('x', t.push({ op: 'add', a: x, b: mixed }));
  });
}

const mambaHeads = 2;
const channels = 2 * width;
const scanWidth = 5;
const rank = 3;

/** Per head its own x_proj and dt_proj: dt (rank), B and C (scanWidth each). */
function mambaMixer(t: TapeBuilder, name: string, u: Value): Value {
  const z = t.linear(u, `${name}.z`, channels, width);
  const x = t.push({
    op: 'activate',
    x: convolve(t, t.linear(u, `${name}.x`, channels, width), `${name}.conv`, channels, 4, true),
    fn: 'silu',
  });
  const own = channels / mambaHeads;
  const parts = Array.from({ length: mambaHeads }, (_, g) => {
    const slice = (of: Value, from: number, to: number) => t.push({ op: 'slice', x: of, from, to });
    const p = t.linear(slice(x, g * own, (g + 1) * own), `${name}.x_proj.${g}`, rank + 2 * scanWidth, own);
    const dt = t.linear(slice(p, 0, rank), `${name}.dt_proj.${g}`, own, rank, { mean: -2, std: 1 });
    return { dt, b: slice(p, rank, rank + scanWidth), c: slice(p, rank + scanWidth, rank + 2 * scanWidth) };
  });
  const join = (key: 'dt' | 'b' | 'c') =>
    parts.map((part) => part[key]).reduce((a, b) => t.push({ op: 'concat', a, b }));
  const dt = t.push({ op: 'activate', x: join('dt'), fn: 'softplus' });
  const y = scan(t, { x, dt, b: join('b'), c: join('c') }, `${name}.scan`, channels, mambaHeads, scanWidth);
  const open = t.push({ op: 'activate', x: z, fn: 'silu' });
  return t.linear(t.push({ op: 'mul', a: y, b: open }), `${name}.out`, width, channels);
}

/** Zamba's transformer block: attention over concat(stream, embedding) without rotation, scale (headDim/2)^-1/2, no residuals. */
function sharedBlock(t: TapeBuilder, x: Value): Value {
  const double = 2 * width;
  const both = t.push({ op: 'concat', a: x, b: t.input('embedded', width) });
  const normed = t.rmsNorm(both, 'shared.norm', double);
  const shape = { heads: 3, kvHeads: 3, headDim: 16, scale: 8 ** -0.5 };
  const [q, k, v] = ['q', 'k', 'v'].map((part) => t.linear(normed, `shared.${part}`, double, double));
  const a = t.linear(attend(t, shape, 'shared.kv', q!, k!, v!), 'shared.o', width, double);
  const f = gated(t, 'shared.mlp', t.rmsNorm(a, 'shared.mlp.norm', width), 'gelu', 36);
  return t.linear(f, 'shared.linear', width, width);
}

/** A model with every kind of state: softmax, windowed and dual attention, convolution, scan. */
export const hybrid: readonly Tape[] = [
  embedding,
  mixer('softmax', attention),
  feedForward('mlp'),
  mixer('windowed', windowed),
  mixer('dual', foldable),
  mamba('mamba'),
  mamba('zamba', true),
  headAll,
  head,
];

/**
 * A model of one convertible layer, cut like the segments of a served model: q, k, v for all rows, then the mechanism by groups of
 * rows (`attend` or `dual`), then the rest for all rows; `fold` rebuilds the dual state from the cache.
 */
export const convertible: Readonly<Record<'project' | 'attend' | 'dual' | 'rest' | 'fold', Tape>> = {
  project: tape('project', (t) => {
    const x = t.input('x', width);
    const { q, k, v } = project(t, 'layer', attention, x);
    t.output('q', q);
    t.output('k', k);
    t.output('v', v);
  }),
  attend: tape('attend', (t) => {
    const [q, k, v] = operands(t);
    t.output('o', mechanism(t, 'layer', attention, q, k, v, v));
  }),
  dual: tape('dual', (t) => {
    const [q, k, v] = operands(t);
    t.output('o', mechanism(t, 'layer', foldable, q, k, v, v));
  }),
  rest: tape('rest', (t) => {
    const o = t.input('o', attention.heads * attention.headDim);
    t.output('x', t.push({ op: 'add', a: t.input('x', width), b: close(t, 'layer', attention, o) }));
  }),
  fold: foldTape(foldable, 'value', mixer('layer', attention), 'layer.dual'),
};

function operands(t: TapeBuilder): [Value, Value, Value] {
  const { heads, kvHeads, headDim } = attention;
  return [t.input('q', heads * headDim), t.input('k', kvHeads * headDim), t.input('v', kvHeads * headDim)];
}
