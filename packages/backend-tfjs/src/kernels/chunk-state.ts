import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

// The part of gated linear attention that crosses chunks. M sequences times key heads, n chunks of C tokens, R queries a
// key head, K state rows (over all states), V state columns. All factors are decayed already, so every exponent was <= 0.

/** Longest chunk, in tokens. */
const longest = 64;

/** Length of the chunks of a sequence of `tokens`: a power of two. */
export function chunkLength(tokens: number): number {
  return Math.min(longest, 2 ** Math.ceil(Math.log2(tokens)));
}

/** [M, R, T, width] as [M, n, R*C, width], padded with zeros at the end. */
export function toChunks(x: Tensor, chunk: number): Tensor {
  const [m, r, tokens, width] = x.shape as [number, number, number, number];
  const n = Math.ceil(tokens / chunk);
  const padding = n * chunk - tokens;
  const full =
    padding > 0
      ? tf.pad(x, [
          [0, 0],
          [0, 0],
          [0, padding],
          [0, 0],
        ])
      : x;
  const blocks = tf.reshape(full, [m, r, n, chunk, width]);
  return tf.reshape(r > 1 ? tf.transpose(blocks, [0, 2, 1, 3, 4]) : blocks, [m, n, r * chunk, width]);
}

/** Undoes toChunks. */
export function fromChunks(x: Tensor, heads: number, tokens: number): Tensor {
  const [m, n, rows, width] = x.shape as [number, number, number, number];
  const blocks = tf.reshape(x, [m, n, heads, rows / heads, width]);
  const joined = tf.reshape(heads > 1 ? tf.transpose(blocks, [0, 2, 1, 3, 4]) : blocks, [m, heads, -1, width]);
  return joined.shape[2] === tokens ? joined : tf.slice(joined, [0, 0, 0, 0], [-1, -1, tokens, -1]);
}

/**
 * S' = decay S + k^T v, chunk after chunk. k [M, n, C, K], v [M, n, C, V]; log decay of a whole chunk [M, n, G], each for K / G
 * rows; initial [M, K, V] (zeros where absent). Returns the state that enters every chunk [M, n, K, V], and the last [M, K, V].
 */
export function enteringStates(
  k: Tensor,
  v: Tensor,
  decay: Tensor,
  initial: Tensor | undefined,
): { readonly entering: Tensor; readonly last: Tensor } {
  const writes = tf.matMul(k, v, true); // [M, n, K, V]
  const [, n] = writes.shape as [number, number];
  const states = carried(tf.concat([edge(initial, writes), writes], 1), decay, false); // S_j gathers pieces 0 to j
  return { entering: chunks(states, 0, n), last: tf.squeeze(chunks(states, n, 1), [1]) };
}

/**
 * The gradient of the loss by the state that leaves every chunk [M, n, K, V], and by the initial state [M, K, V].
 * q [M, n, R*C, K], dy [M, n, R*C, V]; last [M, K, V]: gradient by the last state, zeros where absent.
 */
function leavingGradients(
  q: Tensor,
  dy: Tensor,
  decay: Tensor,
  last: Tensor | undefined,
): { readonly leaving: Tensor; readonly first: Tensor } {
  const reads = tf.matMul(q, dy, true); // [M, n, K, V]
  const [, n] = reads.shape as [number, number];
  const gradients = carried(tf.concat([reads, edge(last, reads)], 1), decay, true); // of S_j: pieces j to n
  return { leaving: chunks(gradients, 1, n), first: tf.squeeze(chunks(gradients, 0, 1), [1]) };
}

/** What crosses chunks gives to the gradients of its factors; `end` is the gradient by the log decay of a whole chunk [M, n, G]. */
export function crossingGradients(
  { q, k, v, decay }: { readonly q: Tensor; readonly k: Tensor; readonly v: Tensor; readonly decay: Tensor },
  dy: Tensor,
  initial: Tensor | undefined,
  dLast: Tensor | undefined,
): {
  readonly dq: Tensor;
  readonly dk: Tensor;
  readonly dv: Tensor;
  readonly end: Tensor;
  readonly dInitial: Tensor;
} {
  const { entering } = enteringStates(k, v, decay, initial);
  const { leaving, first } = leavingGradients(q, dy, decay, dLast);
  return {
    dq: tf.matMul(dy, entering, false, true),
    dk: tf.matMul(v, leaving, false, true),
    dv: tf.matMul(k, leaving),
    end: tf.mul(tf.exp(decay), tf.sum(tf.reshape(tf.mul(entering, leaving), [...decay.shape, -1]), -1)),
    dInitial: first,
  };
}

/** The smallest log decay of a chunk that leaves anything in float32; limits the sums over chunks. */
const strongest = -104;

/**
 * Every piece x_i [M, n + 1, K, V] carried to every later place j, decayed by the chunks i to j - 1 between them, and summed
 * there: one triangular product a row of equal decay. `back`: to every earlier place.
 */
function carried(x: Tensor, decay: Tensor, back: boolean): Tensor {
  const [m, places, k, v] = x.shape as [number, number, number, number];
  const groups = decay.shape[2]!;
  const logs = tf.pad(tf.maximum(decay, strongest), [
    [0, 0],
    [1, 0],
    [0, 0],
  ]);
  const prefix = tf.transpose(tf.cumsum(logs, 1), [0, 2, 1]); // [M, G, n + 1]
  const between = tf.minimum(tf.sub(tf.expandDims(prefix, 3), tf.expandDims(prefix, 2)), 0);
  const factors = tf.mul(tf.exp(between), lowerTriangle(places)); // from place i (column) to j (row)
  const rows = tf.transpose(tf.reshape(x, [m, places, groups, (k / groups) * v]), [0, 2, 1, 3]);
  return tf.reshape(tf.transpose(tf.matMul(factors, rows, back), [0, 2, 1, 3]), [m, places, k, v]);
}

/** 1 on and below the diagonal, 0 above. */
export function lowerTriangle(size: number): Tensor {
  const index = tf.range(0, size);
  return tf.cast(tf.lessEqual(tf.expandDims(index, 0), tf.expandDims(index, 1)), 'float32');
}

/** A state [M, K, V] as a place of its own beside pieces [M, n, K, V]; zeros where absent. */
function edge(state: Tensor | undefined, pieces: Tensor): Tensor {
  const [m, , k, v] = pieces.shape as [number, number, number, number];
  return state ? tf.expandDims(state, 1) : tf.zeros([m, 1, k, v]);
}

function chunks(x: Tensor, from: number, count: number): Tensor {
  return tf.slice(x, [0, from, 0, 0], [-1, count, -1, -1]);
}
