import type { NodeOf } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { Plain } from '../frame.js';
import { logSigmoid } from '../kernels/log-sigmoid.js';

// Nodes that look at one token at a time.

export const embed: Plain<'embed'> = (node, _, frame) =>
  tf.gather(frame.weight(node.table), tf.tensor1d(frame.ids, 'int32'));

export const linear: Plain<'linear'> = (node, [x], frame) => {
  const y = tf.matMul(x!, frame.transposed(node.weight));
  return node.bias === undefined ? y : tf.add(y, frame.weight(node.bias));
};

export const rmsNorm: Plain<'rmsNorm'> = (node, [x], frame) => normalise(x!, frame.weight(node.weight), node.eps);

/** w x / sqrt(mean(x^2) + eps) over the last axis. */
export function normalise(x: Tensor, weight: Tensor, eps: number): Tensor {
  const inverse = tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), eps));
  return tf.mul(tf.mul(x, inverse), weight);
}

export const add: Plain<'add'> = (_, [a, b]) => tf.add(a!, b!);
export const mul: Plain<'mul'> = (_, [a, b]) => tf.mul(a!, b!);
export const concat: Plain<'concat'> = (_, [a, b]) => tf.concat([a!, b!], 1);
export const slice: Plain<'slice'> = (node, [x]) => tf.slice(x!, [0, node.from], [-1, node.to - node.from]);

export const activate: Plain<'activate'> = (node, [x]) => activations[node.fn](x!);

const activations: Readonly<Record<NodeOf<'activate'>['fn'], (x: Tensor) => Tensor>> = {
  silu: (x) => tf.mul(x, tf.sigmoid(x)),
  gelu: (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1)),
  softplus: (x) => tf.neg(logSigmoid(tf.neg(x))),
  logSigmoid,
};

/** Zeros for a row without tokens in this step. */
export const lastToken: Plain<'lastToken'> = (_, [x], frame) => {
  const width = x!.shape[1]!;
  let end = 0;
  const rows = frame.counts.map((count) => {
    end += count;
    return count > 0 ? tf.slice(x!, [end - 1, 0], [1, width]) : tf.zeros([1, width]);
  });
  return tf.concat(rows, 0);
};
