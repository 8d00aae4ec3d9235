import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { chunkLength, crossingGradients, enteringStates, fromChunks, toChunks } from './chunk-state.js';

/** Gated linear attention with one decay a key channel: S <- diag(exp(a)) S + k v^T, o = q^T S. Several states are more channels. */
export interface VectorGated {
  /** [M, T, K] */
  readonly q: Tensor;
  /** [M, T, K] */
  readonly k: Tensor;
  /** [M, T, V] */
  readonly v: Tensor;
  /** Natural log of the decay, at most 0: [M, T, K]. */
  readonly decay: Tensor;
  /** Before the first token: [M, K, V]; zeros where absent. */
  readonly initial?: Tensor | undefined;
}

export interface VectorGradients {
  readonly dq: Tensor;
  readonly dk: Tensor;
  readonly dv: Tensor;
  readonly dDecay: Tensor;
  readonly dInitial: Tensor;
}

/** o [M, T, V] and the last state [M, K, V]. */
export function vectorForward(x: VectorGated): { readonly o: Tensor; readonly state: Tensor } {
  const chunks = split(x);
  const { entering, last } = enteringStates(chunks.wideK, chunks.v, chunks.end, x.initial);
  let o = tf.add(tf.mul(tf.sum(tf.mul(chunks.q, chunks.k), -1, true), chunks.v), tf.matMul(chunks.wideQ, entering));
  for (let half = 1; half < chunks.chunk; half *= 2) {
    const { q, k, v } = halves(chunks, half);
    o = tf.add(o, whole(tf.matMul(tf.matMul(q, k, false, true), v), 'second', o.shape));
  }
  return { o: tf.reshape(fromChunks(o, 1, chunks.tokens), x.v.shape), state: last };
}

/** dy [M, T, V], dLast [M, K, V]: gradients by the output and by the last state. */
export function vectorBackward(x: VectorGated, dy: Tensor, dLast?: Tensor): VectorGradients {
  const chunks = split(x);
  const { chunk, tokens } = chunks;
  const dyc = toChunks(tf.expandDims(dy, 1), chunk);

  // A token with itself: o += (q.k) v, without decay.
  const own = tf.sum(tf.mul(dyc, chunks.v), -1, true); // [M, n, C, 1]
  let dq = tf.zerosLike(chunks.q); // the decayed pairs alone: they decide the gradient by the decay
  let dk = tf.zerosLike(chunks.k);
  let dv = tf.mul(tf.sum(tf.mul(chunks.q, chunks.k), -1, true), dyc);

  for (let half = 1; half < chunk; half *= 2) {
    const { q, k, v, qFactor, kFactor } = halves(chunks, half);
    const dyHalf = pick(dyc, half, 'second');
    const dScores = tf.matMul(dyHalf, v, false, true);
    dv = tf.add(dv, whole(tf.matMul(tf.matMul(q, k, false, true), dyHalf, true), 'first', dv.shape));
    dq = tf.add(dq, whole(tf.mul(tf.matMul(dScores, k), qFactor), 'second', dq.shape));
    dk = tf.add(dk, whole(tf.mul(tf.matMul(dScores, q, true), kFactor), 'first', dk.shape));
  }

  const cross = crossingGradients(
    { q: chunks.wideQ, k: chunks.wideK, v: chunks.v, decay: chunks.end },
    dyc,
    x.initial,
    dLast,
  );
  dq = tf.add(dq, tf.mul(cross.dq, chunks.grow));
  const byPrefix = tf.sub(tf.mul(chunks.q, dq), tf.mul(chunks.k, dk)); // [M, n, C, K]
  const dDecay = tf.addN([
    tf.cumsum(byPrefix, 2, false, true), // a gate is part of the prefix of every later token
    tf.cumsum(tf.mul(chunks.wideK, cross.dk), 2, true), // and decays what every earlier token wrote
    tf.tile(tf.expandDims(cross.end, 2), [1, 1, chunk, 1]), // and what entered the chunk
  ]);
  dk = tf.add(dk, tf.mul(cross.dk, chunks.fade));
  const join = (gradient: Tensor, like: Tensor) => tf.reshape(fromChunks(gradient, 1, tokens), like.shape);
  return {
    dq: join(tf.add(dq, tf.mul(own, chunks.k)), x.q),
    dk: join(tf.add(dk, tf.mul(own, chunks.q)), x.k),
    dv: join(tf.add(dv, cross.dv), x.v),
    dDecay: join(dDecay, x.decay),
    dInitial: cross.dInitial,
  };
}

/** The last state alone: [M, K, V]. */
export function vectorState({ k, v, decay, initial }: Omit<VectorGated, 'q'>): Tensor {
  const chunk = chunkLength(k.shape[1]!);
  const { wideK, end } = fading(toChunks(tf.expandDims(k, 1), chunk), decay, chunk);
  return enteringStates(wideK, toChunks(tf.expandDims(v, 1), chunk), end, initial).last;
}

/** Factors from the log decays [M, T, K] and k by chunks [M, n, C, K]. */
function fading(k: Tensor, decay: Tensor, chunk: number) {
  const [m, n, , width] = k.shape as [number, number, number, number];
  const prefix = tf.cumsum(toChunks(tf.expandDims(decay, 1), chunk), 2); // [M, n, C, K]
  const last = tf.slice(prefix, [0, 0, chunk - 1, 0], [-1, -1, 1, -1]); // [M, n, 1, K]
  const fade = tf.exp(tf.sub(last, prefix)); // from a token to the chunk's end
  return { prefix, fade, wideK: tf.mul(k, fade), end: tf.reshape(last, [m, n, width]) };
}

type Chunks = ReturnType<typeof split>;

function split({ q, k, v, decay }: VectorGated) {
  const tokens = q.shape[1]!;
  const chunk = chunkLength(tokens);
  const [qc, kc, vc] = [q, k, v].map((x) => toChunks(tf.expandDims(x, 1), chunk)) as [Tensor, Tensor, Tensor];
  const factors = fading(kc, decay, chunk);
  const grow = tf.exp(factors.prefix);
  return { tokens, chunk, q: qc, k: kc, v: vc, ...factors, grow, wideQ: tf.mul(qc, grow) };
}

/**
 * The pairs inside a chunk as a binary tree: at every level the second half of each block reads its first half, as one matrix
 * product. Both factors are decayed towards the first token of the second half, so no exponent is positive, and nothing
 * overflows however strong the gates (the sub-chunk references of flash-linear-attention, with sub-chunks of every size).
 * Returns second halves of q and first halves of k, decayed [*, half, K], their factors, and first halves of v [*, half, V].
 */
function halves({ q, k, v, prefix }: Chunks, half: number) {
  const later = pick(prefix, half, 'second');
  const reference = tf.slice(later, [0, 0, 0], [-1, 1, -1]);
  const qFactor = tf.exp(tf.sub(later, reference));
  const kFactor = tf.exp(tf.sub(reference, pick(prefix, half, 'first')));
  return {
    q: tf.mul(pick(q, half, 'second'), qFactor),
    k: tf.mul(pick(k, half, 'first'), kFactor),
    v: pick(v, half, 'first'),
    qFactor,
    kFactor,
  };
}

/** One half of every block of 2*half tokens: [M, n, C, width] to [M*n*C/(2*half), half, width]. */
function pick(x: Tensor, half: number, which: 'first' | 'second'): Tensor {
  const width = x.shape[3]!;
  return tf.slice(tf.reshape(x, [-1, 2 * half, width]), [0, which === 'first' ? 0 : half, 0], [-1, half, -1]);
}

/** Undoes `pick` with zeros in the other half. */
function whole(x: Tensor, which: 'first' | 'second', shape: number[]): Tensor {
  const zeros = tf.zerosLike(x);
  return tf.reshape(tf.concat(which === 'first' ? [x, zeros] : [zeros, x], 1), shape);
}
