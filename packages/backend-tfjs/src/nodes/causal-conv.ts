import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { Stateful } from '../frame.js';

export const causalConv: Stateful<'causalConv'> = (node, [x], frame, rows, carry) => {
  const weight = frame.weight(node.weight); // [channels, 1, K]
  const [channels, , kernel] = weight.shape as [number, number, number];
  const fresh = tf.reshape(x!, [rows, -1, channels]);
  const tokens = fresh.shape[1]!;
  const old = carry?.parts && kernel > 1 ? tf.expandDims(tf.transpose(carry.parts[0]!), 0) : undefined;
  const before = old ?? tf.zeros([rows, kernel - 1, channels]);
  const inputs = kernel > 1 ? tf.concat([before, fresh], 1) : fresh; // [rows, K - 1 + T, channels]
  const taps = tf.split(tf.reshape(weight, [channels, kernel]), kernel, 1);
  const terms = taps.map((tap, j) =>
    tf.mul(tf.slice(inputs, [0, j, 0], [-1, tokens, -1]), tf.reshape(tap, [channels])),
  );
  const sum = terms.reduce((a, b) => tf.add(a, b));
  const y = tf.reshape(node.bias === undefined ? sum : tf.add(sum, frame.weight(node.bias)), x!.shape);
  return { y, parts: carry ? [last(inputs, kernel - 1)] : [] };
};

/** The last inputs of one row, [channels, count]. */
function last(inputs: Tensor, count: number): Tensor {
  const [, all, channels] = inputs.shape as [number, number, number];
  return tf.transpose(tf.reshape(tf.slice(inputs, [0, all - count, 0], [1, count, -1]), [count, channels]));
}
