import type { Tensor } from '@tensorflow/tfjs-core';
import { type ScalarGated, scalarBackward, scalarForward } from './scalar-gates.js';
import { type VectorGated, vectorBackward, vectorForward } from './vector-gates.js';
import { withGradient } from './with-gradient.js';

// Gated linear attention as differentiable operations: the chunk form with a gradient of its own, which keeps the inputs and
// nothing else. Memory grows with the activations, never with states times tokens.

/** o [M, R, T, V] from empty states. */
export function scalarGated({ q, k, v, decay, mix }: ScalarGated): Tensor {
  return withGradient(
    [q, k, v, decay, mix],
    ([q, k, v, decay, mix]) => scalarForward({ q, k, v, decay, mix }).o,
    ([q, k, v, decay, mix], dy) => {
      const { dq, dk, dv, dDecay, dMix } = scalarBackward({ q, k, v, decay, mix }, dy);
      return [dq, dk, dv, dDecay, dMix];
    },
  );
}

/** o [M, T, V] from an empty state. */
export function vectorGated({ q, k, v, decay }: VectorGated): Tensor {
  return withGradient(
    [q, k, v, decay],
    ([q, k, v, decay]) => vectorForward({ q, k, v, decay }).o,
    ([q, k, v, decay], dy) => {
      const gradients = vectorBackward({ q, k, v, decay }, dy);
      return [gradients.dq, gradients.dk, gradients.dv, gradients.dDecay];
    },
  );
}
