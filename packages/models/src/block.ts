import { kvState, type LayerGraph, type NodeOf, type Rope, type Value, type Weight } from '@dsla/spec';
import { type TapeWriter, tape } from './tape.js';

/** A linear map: weight and, where the model has one, bias. */
export type Linear = readonly [weight: Weight, bias?: Weight];

export interface Projections {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly output: Linear;
}

export interface BlockWeights extends Projections {
  readonly inputNorm: Weight;
  readonly outputNorm: Weight;
  readonly gate: Linear;
  readonly up: Linear;
  readonly down: Linear;
}

/** One layer of a Llama: sizes, weights, position. Its halves are cut so that only `attention` depends on the mixer. */
export interface Block {
  readonly layer: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly normEps: number;
  /** Of the softmax scores. */
  readonly scale: number;
  readonly rope: Rope;
  readonly weights: BlockWeights;
}

/** Versions of a layer's segments for one mixer; where one is absent the layer's own serves it too. */
export interface MixerTapes {
  readonly attention: LayerGraph;
  readonly project?: LayerGraph;
  readonly output?: LayerGraph;
  /** The layer's own `project` must write a, the normed input. */
  readonly needsInput?: boolean;
  /** Rebuilds the mixer's state from the layer's KV cache. */
  readonly fold?: LayerGraph;
}

/** x to q, k, v before rotation, and to a, the normed input, for mixers that read it. */
export function project(
  name: string,
  block: Block,
  { query, key, value }: Projections,
  withInput: boolean,
): LayerGraph {
  return tape(name, (t) => {
    const a = t.norm(t.input('x', block.hidden), block.weights.inputNorm, block.normEps);
    t.output('q', t.linear(a, ...query));
    t.output('k', t.linear(a, ...key));
    t.output('v', t.linear(a, ...value));
    if (withInput) t.output('a', a);
  });
}

/** q, k, v to o. */
export function softmax(
  name: string,
  block: Block,
  window?: NodeOf<'softmaxAttention'>['window'],
  state?: string,
): LayerGraph {
  const { layer, heads, kvHeads, headDim, scale, rope } = block;
  const kv = kvState(state ?? kvName(layer), { kvHeads, headDim, ...(window && { window }) });
  return tape(name, (t) => {
    const shape = { heads, kvHeads, headDim, scale, rope, ...(window && { window }) };
    t.output('o', t.node({ op: 'softmaxAttention', ...inputs(t, block), state: kv.name, ...shape }, kv));
  });
}

/** x and o to x: the output projection, the residual, and the whole feed-forward half. */
export function output(name: string, block: Block, projection: Linear): LayerGraph {
  const { hidden, heads, headDim, normEps, weights } = block;
  return tape(name, (t) => {
    const x = t.input('x', hidden);
    const h = t.add(x, t.linear(t.input('o', heads * headDim), ...projection));
    const m = t.norm(h, weights.outputNorm, normEps);
    const gated = t.mul(t.activate(t.linear(m, ...weights.gate), 'silu'), t.linear(m, ...weights.up));
    t.output('x', t.add(h, t.linear(gated, ...weights.down)));
  });
}

/** The named values that every mechanism reads. */
export function inputs(t: TapeWriter, { heads, kvHeads, headDim }: Block): { q: Value; k: Value; v: Value } {
  return {
    q: t.input('q', heads * headDim),
    k: t.input('k', kvHeads * headDim),
    v: t.input('v', kvHeads * headDim),
  };
}

/** Name of a layer's KV cache. */
export function kvName(layer: number): string {
  return `layers.${layer}.kv`;
}
