import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

/** An operation whose gradient is computed from its inputs by `backward`; nothing but the inputs is kept for it. */
export function withGradient<const T extends readonly Tensor[]>(
  inputs: T,
  forward: (inputs: { [I in keyof T]: Tensor }) => Tensor,
  backward: (inputs: { [I in keyof T]: Tensor }, dy: Tensor) => Tensor[],
): Tensor {
  type Own = { [I in keyof T]: Tensor };
  const operation = tf.customGrad((...args) => {
    const save = args.pop() as unknown as (tensors: Tensor[]) => void;
    const own = args as unknown as Own;
    save(args as Tensor[]);
    return {
      value: forward(own),
      gradFunc: (dy: Tensor, saved: Tensor[]) => tf.tidy(() => backward(saved as unknown as Own, dy)),
    };
  });
  return operation(...inputs);
}
