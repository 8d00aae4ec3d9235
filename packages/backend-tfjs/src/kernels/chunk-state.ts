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
 * S' = decay S + k^T v, chunk after chunk. k [M, n, C, K], v [M, n, C, V], decay of a whole chunk [M, n, K],
 * initial [M, K, V] (zeros where absent). Returns the state that enters every chunk [M, n, K, V], and the last [M, K, V].
 */
export function enteringStates(
  k: Tensor,
  v: Tensor,
  decay: Tensor,
  initial: Tensor | undefined,
): { readonly entering: Tensor; readonly last: Tensor } {
  const writes = tf.matMul(k, v, true); // [M, n, K, V]
  const [m, n, width, columns] = writes.shape as [number, number, number, number];
  let state = initial ?? tf.zeros([m, width, columns]);
  const entering: Tensor[] = [];
  for (let chunk = 0; chunk < n; chunk++) {
    entering.push(state);
    state = tf.add(tf.mul(state, column(decay, chunk)), part(writes, chunk));
  }
  return { entering: tf.stack(entering, 1), last: state };
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
  const [m, n, width, columns] = reads.shape as [number, number, number, number];
  let gradient = last ?? tf.zeros([m, width, columns]);
  const leaving: Tensor[] = [];
  for (let chunk = n - 1; chunk >= 0; chunk--) {
    leaving.unshift(gradient);
    gradient = tf.add(tf.mul(gradient, column(decay, chunk)), part(reads, chunk));
  }
  return { leaving: tf.stack(leaving, 1), first: gradient };
}

/** What crosses chunks gives to the gradients of its factors; `end` is the gradient by the log decay of a whole chunk [M, n, K]. */
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
    end: tf.mul(decay, tf.sum(tf.mul(entering, leaving), -1)),
    dInitial: first,
  };
}

/** Chunk of x [M, n, a, b] as [M, a, b]. */
function part(x: Tensor, chunk: number): Tensor {
  const [m, , a, b] = x.shape as [number, number, number, number];
  return tf.reshape(tf.slice(x, [0, chunk, 0, 0], [-1, 1, -1, -1]), [m, a, b]);
}

/** Chunk of x [M, n, a] as [M, a, 1]. */
function column(x: Tensor, chunk: number): Tensor {
  const [m, , a] = x.shape as [number, number, number];
  return tf.reshape(tf.slice(x, [0, chunk, 0], [-1, 1, -1]), [m, a, 1]);
}
