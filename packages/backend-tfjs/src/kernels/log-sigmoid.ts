import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { withGradient } from './with-gradient.js';

/** log(1 / (1 + e^-x)), exact also where it is close to 0: slow gates live there. */
export function logSigmoid(x: Tensor): Tensor {
  return withGradient(
    [x],
    ([x]) => tf.sub(tf.minimum(x, 0), tf.log1p(tf.exp(tf.neg(tf.abs(x))))),
    ([x], dy) => [tf.mul(dy, tf.sigmoid(tf.neg(x)))],
  );
}
