import type { NodeOf } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { heldTokens } from '../cache.js';
import type { Frame } from '../frame.js';
import { mergeKeys } from '../heads.js';
import { scalarState } from '../kernels/scalar-gates.js';
import { vectorState } from '../kernels/vector-gates.js';
import { arrive, emptyState, fromRows, writes } from './dual-linear-attention.js';

/** The parts of the dual state that a prefill of the `past` tokens of a KV cache would have left. */
export function foldState(
  node: NodeOf<'foldState'>,
  cache: readonly Tensor[] | undefined,
  past: number,
  frame: Frame,
): readonly Tensor[] {
  const { form } = node;
  const [keys, values] = [0, 1].map((part) => heldTokens(cache?.[part], past, `foldState ${node.from}`));
  if (!keys || !values || past === 0) return [];
  const k = mergeKeys(frame.rope.rotate(keys, form.rope, 0, true), 1); // [past, kvHeads*hd]
  const v = mergeKeys(values, 1);
  const logits = tf.matMul(node.gateSource === 'key' ? k : v, frame.transposed(node.gateWeight));
  const gates = node.gateBias === undefined ? logits : tf.add(logits, frame.weight(node.gateBias));
  const { entering, rings } = arrive(form, k, v, gates, frame, 1, { past: 0, capacity: past, parts: undefined });
  if (!entering) return [emptyState(form, frame), ...rings];

  const write = writes(form, { ...entering, empty: 0 }, frame, 1);
  if (form.gate === 'scalar') return [fromRows(scalarState(write), form), ...rings];
  const wide = { ...write, k: tf.tile(write.k, [1, 1, form.states]) };
  return [fromRows(vectorState(wide), form), ...rings];
}
