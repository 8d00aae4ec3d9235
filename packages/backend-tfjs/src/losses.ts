import type { Loss } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

/** A loss (scalar) and its gradient by the output. */
export interface Judged {
  readonly loss: Tensor;
  readonly gradient: Tensor;
}

/** The losses that the device knows, of an output and what it should be, [N, width] both. */
export const losses: Readonly<Record<Exclude<Loss['kind'], 'host'>, (output: Tensor, goal: Tensor) => Judged>> = {
  mse(output, target) {
    const difference = tf.sub(output, target);
    return { loss: tf.mean(tf.square(difference)), gradient: tf.mul(difference, 2 / output.size) };
  },
  kl(output, teacher) {
    const [log, wanted] = [logSoftmax(output), logSoftmax(teacher)];
    const share = tf.exp(wanted);
    const rows = output.shape[0]!;
    return {
      loss: tf.div(tf.sum(tf.mul(share, tf.sub(wanted, log))), rows),
      gradient: tf.div(tf.sub(tf.exp(log), share), rows),
    };
  },
};

function logSoftmax(logits: Tensor): Tensor {
  const shifted = tf.sub(logits, tf.max(logits, -1, true));
  return tf.sub(shifted, tf.log(tf.sum(tf.exp(shifted), -1, true)));
}
