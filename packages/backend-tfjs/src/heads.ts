import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

// Values are [rows*tokens, features]; mechanisms work on [M, ...] with M = rows * kvHeads, row-major.

/** q [rows*T, heads*hd] as [rows*kvHeads, heads/kvHeads, T, hd]. */
export function splitQueries(q: Tensor, rows: number, heads: number, kvHeads: number): Tensor {
  const [all, features] = q.shape as [number, number];
  const hd = features / heads;
  const group = heads / kvHeads;
  const byHead = tf.transpose(tf.reshape(q, [rows, all / rows, heads, hd]), [0, 2, 1, 3]);
  return tf.reshape(byHead, [rows * kvHeads, group, all / rows, hd]);
}

/** [rows*kvHeads, group, T, hd] as [rows*T, heads*hd]. */
export function mergeQueries(o: Tensor, rows: number, heads: number): Tensor {
  const [, , tokens, hd] = o.shape as [number, number, number, number];
  const byToken = tf.transpose(tf.reshape(o, [rows, heads, tokens, hd]), [0, 2, 1, 3]);
  return tf.reshape(byToken, [rows * tokens, heads * hd]);
}

/** k or v [rows*T, kvHeads*hd] as [rows*kvHeads, T, hd]. */
export function splitKeys(k: Tensor, rows: number, kvHeads: number): Tensor {
  const [all, features] = k.shape as [number, number];
  const hd = features / kvHeads;
  const byHead = tf.transpose(tf.reshape(k, [rows, all / rows, kvHeads, hd]), [0, 2, 1, 3]);
  return tf.reshape(byHead, [rows * kvHeads, all / rows, hd]);
}

/** Undoes splitKeys. */
export function mergeKeys(k: Tensor, rows: number): Tensor {
  const [m, tokens, hd] = k.shape as [number, number, number];
  const byToken = tf.transpose(tf.reshape(k, [rows, m / rows, tokens, hd]), [0, 2, 1, 3]);
  return tf.reshape(byToken, [rows * tokens, (m / rows) * hd]);
}

/** [kvHeads | heads, ...] once for every row: [rows*kvHeads, group, ...]. */
export function perRow(x: Tensor, rows: number, kvHeads: number): Tensor {
  const shape = [rows * kvHeads, x.shape[0]! / kvHeads, ...x.shape.slice(1)];
  if (rows === 1) return tf.reshape(x, shape);
  return tf.reshape(tf.tile(tf.reshape(x, [1, x.size]), [rows, 1]), shape);
}
