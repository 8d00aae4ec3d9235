import { DslaError, type DualForm, dualState, gateWidth, kvState, type Weight } from '@dsla/spec';
import { type Block, inputs, kvName, type MixerTapes } from './block.js';
import { filled, identities, normal } from './initial.js';
import type { Names } from './names.js';
import { tape } from './tape.js';

/**
 * Dual-state linear attention on the layer's own q, k, v, o. The defaults are the *foldable* form: two states with one scalar
 * gate a head each, computed from v; exp features of un-rotated q and k under a normaliser; joined with an exact window.
 */
export interface DualOptions {
  readonly kind: 'dual';
  /** 2; 1 is gated linear attention. */
  readonly states?: number;
  readonly gate?: 'scalar' | 'vector';
  /** What the gates are computed from; from a key or value the states can be rebuilt from a KV cache. 'value'. */
  readonly gateSource?: 'hidden' | 'key' | 'value';
  /** First bias of the gates, one a state: a logit of 6 halves after 4,480 tokens, 0 after 16. [6, 0] for two. */
  readonly gateBias?: readonly number[];
  readonly temperature?: number;
  /** 'exp'; 'none' with vector gates. */
  readonly featureMap?: 'exp' | 'none';
  /** Rows F of the feature map; the head width. */
  readonly features?: number;
  readonly normaliser?: boolean;
  readonly ropeInState?: boolean;
  /** Tokens of the exact part, 64; 0: no exact part, which is the default without a normaliser. */
  readonly window?: number;
  readonly sinks?: number;
  /** First natural log of the states' weight against the exact part, -7: a conversion starts close to the plain window. */
  readonly logWeight?: number;
  /** RMS norm of every head's output. */
  readonly outputNorm?: boolean;
  /**
   * Rank r of a change of the output projection, W (1 + U D) instead of W, with D [r, heads * headDim] and U of the
   * transposed shape; 0, none. It is applied to o before W, so that W and the rest of the layer stay shared with the other mixers.
   */
  readonly outputRank?: number;
}

export function dual(mixer: string, options: DualOptions, block: Block, names: Names): MixerTapes {
  const { layer, heads, kvHeads, headDim, hidden, scale } = block;
  checkOptions(options, mixer, heads * headDim);
  const name = `layers.${layer}.${mixer}`;
  const add: Add = (suffix, shape, initial) =>
    names.add(`${name}.${suffix}`, shape, [`${name}.${suffix}`], { mixer, initial });
  const form = formOf(options, block, add);
  const source = options.gateSource ?? 'value';
  const gateIn = source === 'hidden' ? hidden : kvHeads * headDim;
  const width = gateWidth(form);
  const gateWeight = add('gate.weight', [width, gateIn], () => filled(width * gateIn, 0));
  const gateBias = add('gate.bias', [width], () => firstBias(options, form));
  const mix = add('mix', [heads, form.states], () => filled(heads * form.states, 0));
  const norm = options.outputNorm && { weight: add('norm', [headDim], () => filled(headDim, 1)), eps: block.normEps };
  const state = dualState(name, form, options.features);
  const change = outputChange(options, heads * headDim, add);
  const attention = tape(`layers.${layer}.attention ${mixer}`, (t) => {
    const { q, k, v } = inputs(t, block);
    const gates = t.linear(source === 'hidden' ? t.input('a', hidden) : source === 'key' ? k : v, gateWeight, gateBias);
    const rest = { mix, state: name, heads, scale, form, ...(norm && { outputNorm: norm }) };
    const o = t.node({ op: 'dualLinearAttention', q, k, v, gates, ...rest }, state);
    t.output('o', change ? t.add(o, t.linear(t.linear(o, change.down), change.up)) : o);
  });
  if (source === 'hidden') return { attention, needsInput: true };
  const kv = kvState(kvName(layer), block);
  const fold = tape(`layers.${layer}.fold ${mixer}`, (t) => {
    const from = kv.name;
    t.node({ op: 'foldState', from, to: name, gateSource: source, gateWeight, gateBias, form }, kv, state);
  });
  return { attention, fold };
}

/** Names a weight that only a conversion file holds, with its untuned start. */
type Add = (suffix: string, shape: readonly number[], initial: () => Float32Array) => Weight;

function formOf(options: DualOptions, block: Block, add: Add): DualForm {
  const { heads, kvHeads, headDim, rope } = block;
  const gate = options.gate ?? 'scalar';
  const map = options.featureMap ?? (gate === 'vector' ? 'none' : 'exp');
  const normaliser = options.normaliser ?? map === 'exp';
  const window = options.window ?? (normaliser ? 64 : 0);
  const features = options.features ?? headDim;
  return {
    states: options.states ?? 2,
    kvHeads,
    headDim,
    gate,
    temperature: options.temperature ?? 16,
    // Identity: phi(q).phi(k) = sum_d 2 cosh(q_d + k_d) up to the two bounds c, largest for keys that agree with the query
    // channel by channel, as in exp(q.k). Much larger maps let the largest channel decide alone, smaller ones see no keys.
    ...(map === 'exp' && {
      featureMap: {
        kind: 'exp',
        query: add('feature.query', [heads, features, headDim], () => identities(heads, features, headDim)),
        key: add('feature.key', [kvHeads, features, headDim], () => identities(kvHeads, features, headDim)),
      },
    }),
    normaliser,
    rope,
    ropeInState: options.ropeInState ?? false,
    ...(window > 0 && {
      exact: {
        window,
        sinks: options.sinks ?? 4,
        logWeight: add('log_weight', [heads], () => filled(heads, options.logWeight ?? -7)),
      },
    }),
  };
}

/** Starts as no change: up is zero, and down is random, so that up has a gradient. */
function outputChange({ outputRank: rank = 0 }: DualOptions, width: number, add: Add) {
  if (rank === 0) return undefined;
  return {
    down: add('output.down', [rank, width], () => normal(rank * width, width ** -0.5, rank)),
    up: add('output.up', [width, rank], () => filled(width * rank, 0)),
  };
}

/** [states, kvHeads (, headDim)]: from 6, remembering, down to 0, forgetting. */
function firstBias(options: DualOptions, form: DualForm): Float32Array {
  const { states } = form;
  const far = 6;
  const bias = options.gateBias ?? Array.from({ length: states }, (_, i) => far * (1 - i / Math.max(1, states - 1)));
  const each = gateWidth(form) / states;
  return Float32Array.from({ length: states * each }, (_, index) => bias[Math.floor(index / each)]!);
}

/** @throws DslaError E_INPUT */
function checkOptions(options: DualOptions, mixer: string, width: number): void {
  const { gateBias: bias, states = 2, features = 1, window = 0, outputRank: rank = 0 } = options;
  const problem =
    bias && bias.length !== states
      ? { rule: `gateBias must have one entry a state, ${states}`, got: bias.length }
      : !Number.isInteger(features) || features < 1
        ? { rule: 'features must be an integer of at least 1', got: features }
        : !Number.isInteger(window) || window < 0
          ? { rule: 'window must be an integer of at least 0', got: window }
          : !Number.isInteger(rank) || rank < 0 || rank > width
            ? { rule: `outputRank must be an integer from 0 to the width of o, ${width}`, got: rank }
            : undefined;
  if (problem) throw new DslaError('E_INPUT', { where: `mixer ${mixer}`, ...problem });
}
