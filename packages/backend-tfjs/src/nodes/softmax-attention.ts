import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { extendRing, heldTokens, join, nextCache, nextRing, ringGeometry } from '../cache.js';
import type { Stateful } from '../frame.js';
import { mergeQueries, splitKeys, splitQueries } from '../heads.js';
import { exactAttention } from '../kernels/exact-attention.js';

export const softmaxAttention: Stateful<'softmaxAttention'> = (node, [q, k, v], frame, rows, carry) => {
  const { heads, kvHeads, rope, window } = node;
  const past = carry?.past ?? 0;
  const queries = tf.mul(frame.rope.rotate(splitQueries(q!, rows, heads, kvHeads), rope, past), node.scale);
  const keys = frame.rope.rotate(splitKeys(k!, rows, kvHeads), rope, past);
  const values = splitKeys(v!, rows, kvHeads);
  const [oldKeys, oldValues] = carry?.parts ?? [];
  if (!window) {
    const where = `softmaxAttention ${node.state}`;
    const allKeys = join([heldTokens(oldKeys, past, where), keys])!;
    const allValues = join([heldTokens(oldValues, past, where), values])!;
    const o = exactAttention(queries, allKeys, allValues, { past, sinks: 0, start: 0 });
    return {
      y: mergeQueries(divide(o), rows, heads),
      parts: carry
        ? [nextCache(oldKeys, allKeys, carry.capacity), nextCache(oldValues, allValues, carry.capacity)]
        : [],
    };
  }
  const at = ringGeometry(past, queries.shape[2]!, window.size, window.sinks);
  const seenKeys = extendRing(oldKeys, keys, at, window.sinks);
  const seenValues = extendRing(oldValues, values, at, window.sinks);
  const o = exactAttention(queries, seenKeys, seenValues, at);
  const ring = (columns: Tensor) => nextRing(columns, at, window.sinks);
  return { y: mergeQueries(divide(o), rows, heads), parts: carry ? [ring(seenKeys), ring(seenValues)] : [] };
};

/** [numerator, denominator] along the last axis as their quotient. */
export function divide(x: Tensor): Tensor {
  const width = x.shape.at(-1)! - 1;
  const lead = x.shape.slice(0, -1);
  const part = (from: number, size: number) => tf.slice(x, [...lead.map(() => 0), from], [...lead.map(() => -1), size]);
  return tf.div(part(0, width), part(width, 1));
}
