import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

/**
 * Gradients of sum(f() * dy) by tensors that f uses; zeros for one that f does not reach. Without dy, f() is a scalar.
 * Unlike TensorFlow.js's own, it leaves nothing behind when f throws. Calls cannot be nested.
 */
export function vjp(f: () => Tensor, xs: readonly Tensor[], dy?: Tensor): Tensor[] {
  const engine = tf.engine();
  try {
    return tf.tidy(() => {
      const { value, grads } = engine.gradients(f, [...xs], dy as Tensor, true);
      value.dispose();
      return xs.map((x, index) => grads[index] ?? tf.zerosLike(x));
    });
  } catch (error) {
    for (const { saved = [] } of engine.state.activeTape ?? []) for (const tensor of saved) tensor.dispose();
    engine.state.activeTape = null as unknown as typeof engine.state.activeTape;
    throw error;
  }
}
