import {
  convState,
  type DualForm,
  dualState,
  gateWidth,
  kvState,
  type NodeOf,
  type Rope,
  scanState,
  type Value,
} from '@dsla/spec';
import type { Spread } from './random.js';
import { type Tape, type TapeBuilder, tape } from './tape.js';

// Each mechanism as a tape of its own: named inputs, one node, one output.

/** Half rotation of the first `rotaryDim` features, theta 10000. */
export function ropeOf(rotaryDim: number): Rope {
  return { rotaryDim, frequencies: Array.from({ length: rotaryDim / 2 }, (_, i) => 10000 ** ((-2 * i) / rotaryDim)) };
}

export interface AttentionShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rope?: Rope;
  readonly window?: { readonly size: number; readonly sinks: number };
  readonly scale?: number;
}

/** Inputs q, k, v; output o. */
export function attentionTape(shape: AttentionShape, state = 'kv', name = 'attention'): Tape {
  const { heads, kvHeads, headDim } = shape;
  return tape(name, (t) => {
    const [q, k, v] = [t.input('q', heads * headDim), t.input('k', kvHeads * headDim), t.input('v', kvHeads * headDim)];
    t.output('o', attend(t, shape, state, q, k, v));
  });
}

export function attend(t: TapeBuilder, shape: AttentionShape, state: string, q: Value, k: Value, v: Value): Value {
  const { scale = shape.headDim ** -0.5 } = shape;
  return t.push({ op: 'softmaxAttention', q, k, v, state: t.state(kvState(state, shape)), ...shape, scale });
}

export interface DualShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly states: number;
  readonly gate: 'scalar' | 'vector';
  readonly temperature?: number;
  /** F of the exp feature map; absent: none. */
  readonly features?: number;
  readonly featureSpread?: Spread;
  readonly normaliser?: boolean;
  readonly rope?: Rope;
  readonly ropeInState?: boolean;
  readonly exact?: { readonly window: number; readonly sinks: number };
  readonly logWeight?: Spread;
  /** Rows of the mix: one a layer (default) or one a head. */
  readonly mixPerHead?: boolean;
  readonly outputNorm?: boolean;
  readonly scale?: number;
}

/** The form of a shape; its weights are declared on the builder. */
function formOf(t: TapeBuilder, shape: DualShape): DualForm {
  const { heads, kvHeads, headDim, states, gate, features, exact } = shape;
  const spread = shape.featureSpread ?? {};
  return {
    states,
    kvHeads,
    headDim,
    gate,
    temperature: shape.temperature ?? 16,
    normaliser: shape.normaliser ?? false,
    ropeInState: shape.ropeInState ?? false,
    ...(shape.rope && { rope: shape.rope }),
    ...(features && {
      featureMap: {
        kind: 'exp',
        query: t.weight('dual.query', [heads, features, headDim], spread),
        key: t.weight('dual.key', [kvHeads, features, headDim], spread),
      },
    }),
    ...(exact && {
      exact: { ...exact, logWeight: t.weight('dual.logWeight', [heads], shape.logWeight ?? { mean: -0.5, std: 0.5 }) },
    }),
  };
}

/** Appends the mechanism with gate logits from a value. */
export function attendDual(
  t: TapeBuilder,
  shape: DualShape,
  state: string,
  { q, k, v, gates }: { readonly q: Value; readonly k: Value; readonly v: Value; readonly gates: Value },
): Value {
  const { heads, headDim, states, scale = headDim ** -0.5 } = shape;
  const form = formOf(t, shape);
  const node: NodeOf<'dualLinearAttention'> = {
    op: 'dualLinearAttention',
    q,
    k,
    v,
    gates,
    mix: t.weight('dual.mix', [shape.mixPerHead ? heads : 1, states], { std: 1 }),
    state: t.state(dualState(state, form, shape.features)),
    heads,
    scale,
    form,
    ...(shape.outputNorm && {
      outputNorm: { weight: t.weight('dual.outputNorm', [headDim], { mean: 1, std: 0.1 }), eps: 1e-5 },
    }),
  };
  return t.push(node);
}

/** Inputs q, k, v and gates; output o. */
export function dualTape(shape: DualShape, state = 'dual', name = 'dual'): Tape {
  const { heads, kvHeads, headDim } = shape;
  return tape(name, (t) => {
    const q = t.input('q', heads * headDim);
    const k = t.input('k', kvHeads * headDim);
    const v = t.input('v', kvHeads * headDim);
    const gates = t.input('gates', gateWidth(shape));
    t.output('o', attendDual(t, shape, state, { q, k, v, gates }));
  });
}

/** As dualTape, with gates computed from what a cache holds. */
export function foldableTape(shape: DualShape, gateSource: 'key' | 'value', state = 'dual', name = 'foldable'): Tape {
  const { heads, kvHeads, headDim } = shape;
  return tape(name, (t) => {
    const q = t.input('q', heads * headDim);
    const k = t.input('k', kvHeads * headDim);
    const v = t.input('v', kvHeads * headDim);
    const gates = t.linear(gateSource === 'key' ? k : v, 'dual.gates', gateWidth(shape), kvHeads * headDim, gateBias);
    t.output('o', attendDual(t, shape, state, { q, k, v, gates }));
  });
}

/** Rebuilds the state of foldableTape from the cache of an attention. */
export function foldTape(shape: DualShape, gateSource: 'key' | 'value', from: Tape, to = 'dual', name = 'fold'): Tape {
  return tape(name, (t) => {
    const cache = t.state(from.graph.states[0]!);
    const form = formOf(t, shape);
    t.push({
      op: 'foldState',
      from: cache,
      to: t.state(dualState(to, form, shape.features)),
      gateSource,
      gateWeight: t.weight('dual.gates', [gateWidth(shape), shape.kvHeads * shape.headDim]),
      gateBias: t.weight('dual.gates.bias', [gateWidth(shape)], gateBias),
      form,
    });
  });
}

const gateBias: Spread = { mean: 2, std: 2 };

/** Inputs x; output y. */
export function convTape(channels: number, kernel: number, bias: boolean): Tape {
  return tape('conv', (t) => {
    const x = t.input('x', channels);
    t.output('y', convolve(t, x, 'conv', channels, kernel, bias));
  });
}

export function convolve(
  t: TapeBuilder,
  x: Value,
  name: string,
  channels: number,
  kernel: number,
  bias: boolean,
): Value {
  return t.push({
    op: 'causalConv',
    x,
    weight: t.weight(`${name}.weight`, [channels, 1, kernel], { std: 0.5 }),
    ...(bias && { bias: t.weight(`${name}.bias`, [channels], { std: 0.2 }) }),
    state: t.state(convState(name, channels, kernel)),
  });
}

/** Inputs x, raw (before softplus), b, c; output y. */
export function scanTape(channels: number, heads: number, n: number): Tape {
  return tape('scan', (t) => {
    const x = t.input('x', channels);
    const dt = t.push({ op: 'activate', x: t.input('raw', channels), fn: 'softplus' });
    const [b, c] = [t.input('b', heads * n), t.input('c', heads * n)];
    t.output('y', scan(t, { x, dt, b, c }, 'scan', channels, heads, n));
  });
}

export function scan(
  t: TapeBuilder,
  operands: { readonly x: Value; readonly dt: Value; readonly b: Value; readonly c: Value },
  name: string,
  channels: number,
  heads: number,
  n: number,
): Value {
  return t.push({
    op: 'selectiveScan',
    ...operands,
    logA: t.weight(`${name}.logA`, [heads, channels / heads, n], { mean: 1, std: 1 }),
    d: t.weight(`${name}.d`, [heads, channels / heads], { mean: 1, std: 0.3 }),
    state: t.state(scanState(name, channels, n)),
    heads,
  });
}
