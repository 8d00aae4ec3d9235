import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { withGradient } from './with-gradient.js';

/** Where queries and keys stand in their sequence. */
export interface Places {
  /** Position of the first query. */
  readonly past: number;
  /** Leading keys that stand at positions 0, 1, ...; the others follow each other from `start`. */
  readonly sinks: number;
  readonly start: number;
  /** How many tokens back a query sees, its own included; absent: all. */
  readonly window?: number | undefined;
}

/** Fewest queries that are worked on together: their scores are the largest temporary, [M, R*128, keys]. */
const shortest = 128;
/** On a GPU a call costs more than the pairs that it could have left out: blocks grow until their scores take 128 MB, what every adapter binds. */
const gpuScores = 2 ** 25;

/**
 * Causal attention before its division: [sum of e^(s - m) v, sum of e^(s - m)], s = q.k, m = max s.
 * q [M, R, T, width] already scaled, k [M, keys, width], v [M, keys, columns]; returns [M, R, T, columns + 1].
 * The gradient computes the scores again, block by block; the maximum m is part of the function.
 */
export function exactAttention(q: Tensor, k: Tensor, v: Tensor, places: Places): Tensor {
  return withGradient(
    [q, k, v],
    ([q, k, v]) => {
      const values = tf.concat([v, tf.ones([...v.shape.slice(0, 2), 1])], 2);
      return tf.concat(
        blocks(q, k, places).map((range) =>
          tf.tidy(() => {
            const { weights, values: own } = score(q, k, values, places, range);
            return unrows(tf.matMul(weights, own), q.shape[1]!);
          }),
        ),
        2,
      );
    },
    ([q, k, v], dy) => {
      const values = tf.concat([v, tf.ones([...v.shape.slice(0, 2), 1])], 2);
      const dq: Tensor[] = [];
      let sums = [tf.zerosLike(k), tf.zerosLike(v)] as const;
      for (const range of blocks(q, k, places)) {
        const own = tf.tidy(() => gradient(q, k, values, places, range, dy, sums));
        tf.dispose([...sums]);
        dq.push(own[0]);
        sums = [own[1], own[2]];
      }
      return [tf.concat(dq, 2), ...sums];
    },
  );
}

interface Range {
  readonly from: number;
  readonly to: number;
}

function blocks(q: Tensor, k: Tensor, { window, sinks }: Places): Range[] {
  const [m, heads, tokens] = q.shape as [number, number, number];
  const keys = (queries: number) =>
    window === undefined ? k.shape[1]! : Math.min(k.shape[1]!, queries + window + sinks);
  let block = shortest;
  if (tf.getBackend() === 'webgpu') {
    while (block < tokens && m * heads * 2 * block * keys(2 * block) <= gpuScores) block *= 2;
  }
  return Array.from({ length: Math.ceil(tokens / block) }, (_, index) => ({
    from: index * block,
    to: Math.min(tokens, (index + 1) * block),
  }));
}

/** The weights e^(s - m) of a block of queries [M, R*b, columns], and the keys and values that it can see. */
function score(q: Tensor, k: Tensor, values: Tensor, places: Places, range: Range) {
  const [m, heads] = q.shape as [number, number];
  const columns = seen(places, range, k.shape[1]!);
  const queries = rows(tf.slice(q, [0, 0, range.from, 0], [-1, -1, range.to - range.from, -1]));
  const keys = take(k, columns, places.sinks);
  const size = [m, heads, range.to - range.from, keys.shape[1]!];
  const scores = tf.reshape(tf.matMul(queries, keys, false, true), size);
  const visible = tf.add(scores, hidden(places, range, columns)); // [M, R, b, columns]
  const max = tf.max(visible, -1, true);
  const weights = tf.reshape(tf.exp(tf.sub(visible, max)), [m, -1, size[3]!]);
  return { weights, queries, keys, values: take(values, columns, places.sinks), visible, max, columns };
}

/** Gradient by a block of queries, and the sums of those by k and v with the block's share. */
function gradient(
  q: Tensor,
  k: Tensor,
  values: Tensor,
  places: Places,
  range: Range,
  dy: Tensor,
  [dk, dv]: readonly [Tensor, Tensor],
): [Tensor, Tensor, Tensor] {
  const own = score(q, k, values, places, range);
  const dyRows = rows(tf.slice(dy, [0, 0, range.from, 0], [-1, -1, range.to - range.from, -1])); // [M, R*b, V + 1]
  const dValues = tf.matMul(own.weights, dyRows, true);
  const dWeights = tf.mul(own.weights, tf.matMul(dyRows, own.values, false, true));
  // m takes the opposite of all of it, through the keys that attain it.
  const top = tf.reshape(tf.cast(tf.equal(own.visible, own.max), 'float32'), dWeights.shape);
  const share = tf.div(tf.sum(dWeights, -1, true), tf.sum(top, -1, true));
  const dScores = tf.sub(dWeights, tf.mul(top, share));
  const everywhere = (x: Tensor) => around(x, own.columns, places.sinks, k.shape[1]!);
  return [
    unrows(tf.matMul(dScores, own.keys), q.shape[1]!),
    tf.add(dk, everywhere(tf.matMul(dScores, own.queries, true))),
    tf.add(dv, everywhere(tf.slice(dValues, [0, 0, 0], [-1, -1, values.shape[2]! - 1]))),
  ];
}

/** The keys after the sinks that a block of queries can see: a stretch of columns. */
function seen({ past, sinks, start, window }: Places, { from, to }: Range, keys: number): Range {
  const first = window === undefined ? 0 : Math.max(0, past + from - window + 1 - start);
  const end = Math.max(0, past + to - start);
  return { from: Math.min(sinks + first, keys), to: Math.min(sinks + Math.max(first, end), keys) };
}

/** 0 where a query sees a key, -1e30 elsewhere: [b, columns]. */
function hidden({ past, sinks, start, window }: Places, { from, to }: Range, columns: Range): Tensor {
  const positions = tf.concat([tf.range(0, sinks), tf.range(columns.from - sinks + start, columns.to - sinks + start)]);
  const distance = tf.sub(tf.expandDims(tf.range(past + from, past + to), 1), tf.expandDims(positions, 0));
  const future = tf.step(tf.neg(distance)); // 1 where the key comes later
  if (window === undefined) return tf.mul(future, -1e30);
  const recent = tf.expandDims(tf.concat([tf.zeros([sinks]), tf.ones([columns.to - columns.from])]), 0);
  const gone = tf.mul(tf.step(tf.sub(distance, window - 1)), recent);
  return tf.mul(tf.add(future, gone), -1e30);
}

/** Sinks, then a stretch of the other columns of x [M, keys, width]. */
function take(x: Tensor, { from, to }: Range, sinks: number): Tensor {
  const stretch = tf.slice(x, [0, from, 0], [-1, to - from, -1]);
  return sinks === 0 ? stretch : tf.concat([tf.slice(x, [0, 0, 0], [-1, sinks, -1]), stretch], 1);
}

/** Undoes `take` with zeros for what was not taken. */
function around(x: Tensor, { from, to }: Range, sinks: number, keys: number): Tensor {
  const [m, , width] = x.shape as [number, number, number];
  const gap = (size: number) => (size > 0 ? [tf.zeros([m, size, width])] : []);
  const head = sinks > 0 ? [tf.slice(x, [0, 0, 0], [-1, sinks, -1])] : [];
  return tf.concat(
    [...head, ...gap(from - sinks), tf.slice(x, [0, sinks, 0], [-1, to - from, -1]), ...gap(keys - to)],
    1,
  );
}

/** [M, R, b, width] as [M, R*b, width]. */
function rows(x: Tensor): Tensor {
  const [m, heads, b, width] = x.shape as [number, number, number, number];
  return tf.reshape(x, [m, heads * b, width]);
}

function unrows(x: Tensor, heads: number): Tensor {
  const [m, all, width] = x.shape as [number, number, number];
  return tf.reshape(x, [m, heads, all / heads, width]);
}
