import type { NodeOf } from '@dsla/spec';
import { rotated } from '../rope.js';
import type { Tensor } from '../tensor.js';
import { arrive, type DualMemory } from './dual-linear-attention.js';
import { linear } from './linear.js';
import { type Cache, load } from './softmax-attention.js';

export interface FoldWeights {
  /** [gate width, kvHeads*headDim] */
  readonly gateWeight: Tensor;
  /** [gate width] */
  readonly gateBias?: Tensor | undefined;
  /** [kvHeads, F, headDim] */
  readonly key?: Tensor | undefined;
}

/** Replays the first `past` tokens of a cache [kvHeads, entries, headDim] into an emptied dual memory. */
export function foldState(
  node: Pick<NodeOf<'foldState'>, 'gateSource' | 'form'>,
  weights: FoldWeights,
  cache: Cache,
  memory: DualMemory,
  past: number,
): void {
  const { kvHeads, headDim, rope } = node.form;
  const entries = cache.keys.length / (kvHeads * headDim);
  memory.state.fill(0);
  for (let position = 0; position < past; position++) {
    const key = load(cache.keys, position, entries, headDim);
    const value = load(cache.values, position, entries, headDim);
    const source = node.gateSource === 'value' ? value : rotated(key, headDim, rope, -position);
    const gates = linear(source, weights.gateWeight, weights.gateBias);
    arrive(node.form, weights.key, memory, { key, value, gates }, position);
  }
}
