import { type DualForm, dualState, f32, type HostTensor, kvState, ringIndex, scanState } from '@dsla/spec';
import type { Golden } from './golden.js';
import { ropeOf } from './mechanisms.js';
import { floats } from './states.js';
import { type Tape, type TapeBuilder, tape } from './tape.js';

// The tape of every golden operator file. Names of tensors: golden/README.md.

/** A tape for one golden file, what to feed it, and what must come out. */
export interface Play {
  readonly tape: Tape;
  /** Named inputs, [tokens, width] each. */
  readonly inputs: Readonly<Record<string, HostTensor>>;
  /** Parts of the state before the first step. */
  readonly start?: readonly HostTensor[] | undefined;
  readonly past?: number;
  readonly tokens?: number;
  /** Sizes of the steps; one step of all tokens if absent. */
  readonly counts?: readonly number[];
  /** Expected content of the state's first part at the end. */
  readonly state?: Float32Array | undefined;
}

/** Inputs and weights keep the names of their golden tensors. */
export function playOf(golden: Golden): Play {
  return plays[golden.settings.op as keyof typeof plays](golden.settings as unknown as Settings, golden);
}

/** Settings that a case of the kind at hand is known to have. */
export interface Settings {
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly past: number;
  /** softmaxAttention: null or an object; foldable: tokens. */
  readonly window: unknown;
  readonly sinks: number;
  readonly width: number;
  readonly eps: number;
  readonly channels: number;
  readonly kernel: number;
  readonly n: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly initialState: boolean;
  readonly cut: number;
  readonly temperature: number;
  readonly states: number;
  readonly features: number;
  readonly ropeInState: boolean;
  readonly rotaryDim: number;
}

const plays = {
  rmsNorm({ width, eps }: Settings, { tensors }: Golden): Play {
    const one = tape('norm', (t) => {
      const x = t.input('x', width);
      t.output('y', t.push({ op: 'rmsNorm', x, weight: given(t, tensors, 'weight'), eps }));
    });
    return { tape: one, inputs: { x: tensors.get('x')! } };
  },

  softmaxAttention(of: Settings, { tensors }: Golden): Play {
    const { heads, kvHeads, headDim, scale, past } = of;
    const window = (of.window ?? undefined) as { readonly size: number; readonly sinks: number } | undefined;
    const spec = kvState('kv', { kvHeads, headDim, ...(window && { window }) });
    const one = tape('attention', (t) => {
      const [q, k, v] = [
        t.input('q', heads * headDim),
        t.input('k', kvHeads * headDim),
        t.input('v', kvHeads * headDim),
      ];
      const shape = { heads, kvHeads, headDim, scale, ...(window && { window }) };
      t.output('o', t.push({ op: 'softmaxAttention', q, k, v, state: t.state(spec), ...shape }));
    });
    const entries = window ? window.sinks + window.size : past + of.tokens;
    const entryOf = (j: number) => (window ? ringIndex(j, window.size, window.sinks) : j);
    const cache = (name: string): HostTensor => {
      const data = new Float32Array(kvHeads * entries * headDim);
      for (let head = 0; head < kvHeads; head++) {
        for (let j = 0; j < past; j++) {
          const from = (head * past + j) * headDim;
          data.set(floats(tensors.get(name)!).subarray(from, from + headDim), (head * entries + entryOf(j)) * headDim);
        }
      }
      return f32([kvHeads, entries, headDim], data);
    };
    const start = past > 0 ? [cache('pastK'), cache('pastV')] : undefined;
    return { tape: one, inputs: pick(tensors, 'q', 'k', 'v'), start, past, tokens: past + of.tokens };
  },

  /** Gated linear attention with one state; g is the log decay, so logSigmoid(logit) = g. Narrow values are padded with zeros. */
  gla({ heads, keyDim, valueDim, scale, initialState }: Settings, { tensors }: Golden): Play {
    const form: DualForm = { ...plainForm, states: 1, kvHeads: heads, headDim: keyDim, temperature: 1 };
    const one = dualAlone(form, heads, scale, (t) => t.weight('mix', [1, 1], { data: Float32Array.of(0) }));
    const pad = (x: HostTensor, width: number) => padded(x, width, keyDim);
    const logits = floats(tensors.get('g')!).map((g) => (g === 0 ? 60 : -Math.log(Math.expm1(-g))));
    return {
      tape: one,
      inputs: {
        ...pick(tensors, 'q', 'k'),
        v: pad(tensors.get('v')!, valueDim),
        gates: { ...tensors.get('g')!, data: logits },
      },
      ...(initialState && {
        start: [reshaped(pad(tensors.get('h0')!, valueDim), [1, heads, keyDim, keyDim])],
        past: 7,
      }),
      state: floats(pad(tensors.get('state')!, valueDim)),
    };
  },

  /** The whole layer of arXiv 2506.09316, in two steps. */
  dslaPublished({ heads, headDim, scale, temperature, states, tokens, cut }: Settings, { tensors }: Golden): Play {
    const width = heads * headDim;
    const form: DualForm = { ...plainForm, states, kvHeads: heads, headDim, temperature };
    const one = tape('dsla', (t) => {
      const x = t.input('x', width);
      const project = (name: string, bias: boolean) =>
        t.push({
          op: 'linear',
          x,
          weight: given(t, tensors, `${name}.weight`),
          ...(bias && { bias: given(t, tensors, `${name}.bias`) }),
        });
      const [q, k, v] = [project('q_proj', false), project('k_proj', false), project('v_proj', false)];
      const gates = t.push({ op: 'concat', a: project('gk_proj', true), b: project('gk_proj2', true) });
      const mix = t.weight('alpha_list', [1, states], { data: floats(tensors.get('alpha_list')!) });
      const state = t.state(dualState('dual', form));
      const o = t.push({ op: 'dualLinearAttention', q, k, v, gates, mix, state, heads, scale, form });
      t.output('mixed', o);
      t.output('y', t.push({ op: 'linear', x: o, weight: given(t, tensors, 'o_proj.weight') }));
    });
    return { tape: one, inputs: pick(tensors, 'x'), counts: [cut, tokens - cut], state: floats(tensors.get('state')!) };
  },

  foldable(of: Settings, { tensors }: Golden): Play {
    const { heads, kvHeads, headDim, window, sinks, ...rest } = of;
    const form = (t: TapeBuilder): DualForm => ({
      states: rest.states,
      kvHeads,
      headDim,
      gate: 'scalar',
      temperature: rest.temperature,
      normaliser: true,
      featureMap: { kind: 'exp', query: given(t, tensors, 'featureQ'), key: given(t, tensors, 'featureK') },
      rope: ropeOf(rest.rotaryDim),
      ropeInState: rest.ropeInState,
      exact: { window: window as number, sinks, logWeight: given(t, tensors, 'logWeight') },
    });
    const one = tape('foldable', (t) => {
      const [q, k, v] = [
        t.input('q', heads * headDim),
        t.input('k', kvHeads * headDim),
        t.input('v', kvHeads * headDim),
      ];
      const gates = t.input('gates', rest.states * kvHeads);
      const own = form(t);
      const state = t.state(dualState('dual', own, rest.features));
      const mix = given(t, tensors, 'mix');
      t.output(
        'o',
        t.push({ op: 'dualLinearAttention', q, k, v, gates, mix, state, heads, scale: rest.scale, form: own }),
      );
    });
    return { tape: one, inputs: pick(tensors, 'q', 'k', 'v', 'gates'), state: floats(tensors.get('state')!) };
  },

  selectiveScan({ channels, heads, n, initialState }: Settings, { tensors }: Golden): Play {
    const one = tape('scan', (t) => {
      const [x, raw, b, c] = [
        t.input('x', channels),
        t.input('dtRaw', channels),
        t.input('b', heads * n),
        t.input('c', heads * n),
      ];
      const dt = t.push({ op: 'activate', x: raw, fn: 'softplus' });
      const [logA, d] = [given(t, tensors, 'logA'), given(t, tensors, 'd')];
      const state = t.state(scanState('scan', channels, n));
      t.output('y', t.push({ op: 'selectiveScan', x, dt, b, c, logA, d, state, heads }));
    });
    const inputs = pick(tensors, 'x', 'dtRaw', 'b', 'c');
    return { tape: one, inputs, ...begun(initialState, tensors), state: floats(tensors.get('state')!) };
  },

  causalConv({ channels, kernel, initialState }: Settings, { tensors }: Golden): Play {
    const one = tape('conv', (t) => {
      const x = t.input('x', channels);
      const [weight, bias] = [given(t, tensors, 'weight'), given(t, tensors, 'bias')];
      const parts = [{ name: 'inputs', dtype: 'compute', shape: [channels, kernel - 1] }] as const;
      const state = t.state({ name: 'conv', kind: 'conv', parts });
      t.output('y', t.push({ op: 'causalConv', x, weight, bias, state }));
    });
    return {
      tape: one,
      inputs: pick(tensors, 'x'),
      ...begun(initialState, tensors),
      state: floats(tensors.get('state')!),
    };
  },
};

const plainForm = { gate: 'vector', normaliser: false, ropeInState: false } as const;

/** Inputs q, k, v, gates, no weight but the mix. */
function dualAlone(form: DualForm, heads: number, scale: number, mixOf: (t: TapeBuilder) => string): Tape {
  const width = heads * form.headDim;
  return tape('dual', (t) => {
    const [q, k, v, gates] = [t.input('q', width), t.input('k', width), t.input('v', width), t.input('gates', width)];
    const state = t.state(dualState('dual', form));
    t.output('o', t.push({ op: 'dualLinearAttention', q, k, v, gates, mix: mixOf(t), state, heads, scale, form }));
  });
}

/** A state to start from means that tokens came before. */
function begun(initialState: boolean, tensors: Golden['tensors']): Pick<Play, 'start' | 'past'> {
  return initialState ? { start: [tensors.get('state0')!], past: 7 } : {};
}

/** A weight with the numbers of a golden tensor. */
function given(t: TapeBuilder, tensors: Golden['tensors'], name: string): string {
  const tensor = tensors.get(name)!;
  return t.weight(name, tensor.shape, { data: floats(tensor) });
}

function pick(tensors: Golden['tensors'], ...names: string[]): Record<string, HostTensor> {
  return Object.fromEntries(names.map((name) => [name, tensors.get(name)!]));
}

function reshaped({ data, dtype }: HostTensor, shape: readonly number[]): HostTensor {
  return { dtype, shape, data };
}

/** [..., from] to [..., to] with zeros. */
export function padded(tensor: HostTensor, from: number, to: number): HostTensor {
  const x = floats(tensor);
  const out = new Float32Array((x.length / from) * to);
  for (let row = 0; row * from < x.length; row++) out.set(x.subarray(row * from, (row + 1) * from), row * to);
  return f32([...tensor.shape.slice(0, -1), to], out);
}
