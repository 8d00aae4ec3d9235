import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { chunkLength, crossingGradients, enteringStates, fromChunks, lowerTriangle, toChunks } from './chunk-state.js';

/**
 * Gated linear attention with S states that decay by one number a head each, read as one mixture:
 * S_i <- exp(a_i) S_i + k v^T, o = sum_i mix_i q^T S_i.
 */
export interface ScalarGated {
  /** [M, R, T, K] */
  readonly q: Tensor;
  /** [M, T, K] */
  readonly k: Tensor;
  /** [M, T, V] */
  readonly v: Tensor;
  /** Natural log of the decay, at most 0: [M, S, T]. */
  readonly decay: Tensor;
  /** [M, R, S] */
  readonly mix: Tensor;
  /** Before the first token: [M, S*K, V]; zeros where absent. */
  readonly initial?: Tensor | undefined;
}

export interface ScalarGradients {
  readonly dq: Tensor;
  readonly dk: Tensor;
  readonly dv: Tensor;
  readonly dDecay: Tensor;
  readonly dMix: Tensor;
  readonly dInitial: Tensor;
}

/** Chunk form: the states share q k^T inside a chunk, and become one state of S*K rows between chunks. */
export function scalarForward(x: ScalarGated): { readonly o: Tensor; readonly state: Tensor } {
  const chunks = split(x);
  const { entering, last } = enteringStates(chunks.wideK, chunks.v, chunks.end, x.initial);
  const inside = tf.matMul(tf.reshape(tf.mul(chunks.scores, chunks.weights), chunks.square), chunks.v);
  const o = tf.add(inside, tf.matMul(chunks.wideQ, entering));
  return { o: fromChunks(o, chunks.heads, chunks.tokens), state: last };
}

/** dy [M, R, T, V], dLast [M, S*K, V]: gradients by the output and by the last state. */
export function scalarBackward(x: ScalarGated, dy: Tensor, dLast?: Tensor): ScalarGradients {
  const chunks = split(x);
  const { m, n, heads, chunk, states, width, tokens, q, k, v, scores, fade, grow, mixed } = chunks;
  const dyc = toChunks(dy, chunk); // [M, n, R*C, V]

  // Inside the chunks: o = (scores * weights) v.
  const dA = tf.reshape(tf.matMul(dyc, v, false, true), [m, n, heads, chunk, chunk]);
  const dScores = tf.reshape(tf.mul(dA, chunks.weights), chunks.square);
  const attention = tf.reshape(tf.mul(scores, chunks.weights), chunks.square);
  const pairs = tf.mul(dA, scores); // by the weight of every pair

  // Across the chunks: o = wideQ S.
  const cross = crossingGradients({ q: chunks.wideQ, k: chunks.wideK, v, decay: chunks.end }, dyc, x.initial, dLast);

  let dq = tf.matMul(dScores, k);
  let dk = tf.matMul(dScores, q, true);
  const dDecay: Tensor[] = [];
  const dMix: Tensor[] = [];
  for (let state = 0; state < states; state++) {
    const ownMix = tf.reshape(tf.slice(x.mix, [0, 0, state], [-1, -1, 1]), [m, 1, heads, 1, 1]);
    const dWideQ = tf.slice(cross.dq, [0, 0, 0, state * width], [-1, -1, -1, width]); // [M, n, R*C, K]
    const dWideK = tf.slice(cross.dk, [0, 0, 0, state * width], [-1, -1, -1, width]); // [M, n, C, K]
    dq = tf.add(dq, tf.mul(dWideQ, mixed[state]!));
    dk = tf.add(dk, tf.mul(dWideK, fade[state]!));

    const read = tf.sum(tf.mul(tf.mul(q, dWideQ), rows(grow[state]!, heads)), -1); // [M, n, R*C], before mixing
    const readByHead = tf.reshape(read, [m, n, heads, chunk]);
    const ownPairs = tf.mul(pairs, chunks.decays[state]!); // [M, n, R, C, C]
    dMix.push(tf.add(tf.sum(ownPairs, [1, 3, 4]), tf.sum(readByHead, [1, 3]))); // [M, R]

    const square = tf.mul(tf.sum(tf.mul(ownPairs, ownMix), 2), chunks.earlier); // no gate between a token and itself: [M, n, C, C]
    const inner = tf.sub(tf.sum(square, 3), tf.sum(square, 2)); // to the query's prefix, from the key's: [M, n, C]
    const mixedRead = tf.sum(tf.mul(readByHead, tf.reshape(ownMix, [m, 1, heads, 1])), 2); // [M, n, C]
    const write = tf.sum(tf.mul(tf.mul(k, fade[state]!), dWideK), -1); // [M, n, C]
    const end = tf.slice(cross.end, [0, 0, state], [-1, -1, 1]); // [M, n, 1]
    dDecay.push(
      tf.addN([
        tf.cumsum(tf.add(inner, mixedRead), 2, false, true), // a gate is part of the prefix of every later token
        tf.cumsum(write, 2, true), // and decays what every earlier token wrote
        tf.tile(end, [1, 1, chunk]), // and what entered the chunk
      ]),
    );
  }
  return {
    dq: fromChunks(dq, heads, tokens),
    dk: tf.reshape(fromChunks(dk, 1, tokens), x.k.shape),
    dv: tf.reshape(fromChunks(tf.add(tf.matMul(attention, dyc, true), cross.dv), 1, tokens), x.v.shape),
    dDecay: tf.concat(
      dDecay.map((own) => tf.reshape(fromChunks(tf.expandDims(own, 3), 1, tokens), [m, 1, tokens])),
      1,
    ),
    dMix: tf.stack(dMix, 2),
    dInitial: cross.dInitial,
  };
}

/** The last state alone: [M, S*K, V]. */
export function scalarState({ k, v, decay, initial }: Omit<ScalarGated, 'q' | 'mix'>): Tensor {
  const chunk = chunkLength(k.shape[1]!);
  const { wideK, end } = fading(toChunks(tf.expandDims(k, 1), chunk), decay, chunk);
  return enteringStates(wideK, toChunks(tf.expandDims(v, 1), chunk), end, initial).last;
}

/** Factors by state, from the log decays [M, S, T] and k by chunks [M, n, C, K]. */
function fading(k: Tensor, decay: Tensor, chunk: number) {
  const [m, n] = k.shape as [number, number];
  const [, states, tokens] = decay.shape as [number, number, number];
  const prefixes = tf.split(decay, states, 1).map((own) => {
    return tf.cumsum(toChunks(tf.reshape(own, [m, 1, tokens, 1]), chunk), 2); // [M, n, C, 1]
  });
  const wholes = prefixes.map((prefix) => tf.slice(prefix, [0, 0, chunk - 1, 0], [-1, -1, 1, 1])); // [M, n, 1, 1]
  const fade = prefixes.map((prefix, state) => tf.exp(tf.sub(wholes[state]!, prefix)));
  return {
    prefixes,
    fade, // from a token to the chunk's end: [M, n, C, 1]
    wideK: joined(fade.map((factor) => tf.mul(k, factor))), // [M, n, C, S*K]
    end: tf.reshape(joined(wholes), [m, n, states]), // log decay of the whole chunk
  };
}

/** The inputs by chunks, with every factor of the chunk form. */
function split({ q, k, v, decay, mix }: ScalarGated) {
  const [m, heads, tokens, width] = q.shape as [number, number, number, number];
  const states = decay.shape[1]!;
  const chunk = chunkLength(tokens);
  const qc = toChunks(q, chunk); // [M, n, R*C, K]
  const kc = toChunks(tf.expandDims(k, 1), chunk); // [M, n, C, K]
  const n = qc.shape[1]!;
  const square = [m, n, heads * chunk, chunk];
  const lower = lowerTriangle(chunk);
  const { prefixes, fade, wideK, end } = fading(kc, decay, chunk);

  const grow = prefixes.map((prefix) => tf.exp(prefix)); // from the chunk's start to a token: [M, n, C, 1]
  const shares = tf.split(mix, states, 2); // [M, R, 1]
  const mixed = shares.map((share, state) => {
    const byHead = tf.mul(tf.reshape(grow[state]!, [m, n, 1, chunk]), tf.expandDims(share, 1));
    return tf.reshape(byHead, [m, n, heads * chunk, 1]);
  });
  // From key to query, 0 above the diagonal: [M, n, 1, C, C]. There the exponent is positive: cut before it can overflow.
  const decays = prefixes.map((prefix) => {
    const between = tf.minimum(tf.sub(prefix, tf.reshape(prefix, [m, n, 1, chunk])), 0);
    return tf.expandDims(tf.mul(tf.exp(between), lower), 2);
  });
  const weights = decays.map((own, state) => tf.mul(own, tf.reshape(shares[state]!, [m, 1, heads, 1, 1])));
  return {
    m,
    n,
    heads,
    chunk,
    states,
    width,
    tokens,
    square,
    q: qc,
    k: kc,
    v: toChunks(tf.expandDims(v, 1), chunk), // [M, n, C, V]
    scores: tf.reshape(tf.matMul(qc, kc, false, true), [m, n, heads, chunk, chunk]),
    earlier: tf.sub(lower, tf.eye(chunk)), // without the diagonal
    decays,
    weights: weights.reduce((a, b) => tf.add(a, b)), // of the pairs, over all states: [M, n, R, C, C]
    grow,
    fade,
    mixed, // grow times the state's share: [M, n, R*C, 1]
    wideQ: joined(mixed.map((factor) => tf.mul(qc, factor))), // [M, n, R*C, S*K]
    wideK,
    end,
  };
}

/** Side by side along the last axis. */
function joined(pieces: Tensor[]): Tensor {
  return pieces.length > 1 ? tf.concat(pieces, -1) : pieces[0]!;
}

/** [M, n, C, 1] once for every query head: [M, n, R*C, 1]. */
function rows(x: Tensor, heads: number): Tensor {
  return heads > 1 ? tf.tile(x, [1, 1, heads, 1]) : x;
}
