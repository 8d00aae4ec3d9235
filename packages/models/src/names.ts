import type { Weight } from '@dsla/spec';
import type { WeightRef } from './model.js';

/** Collects where the weights of a model lie while its tapes are written. */
export interface Names {
  readonly weights: Readonly<Record<Weight, WeightRef>>;
  /** Names a weight [shape], found under the first of `tensors` that a checkpoint holds. */
  add(name: Weight, shape: readonly number[], tensors: readonly string[], more?: Partial<WeightRef>): Weight;
}

export function names(): Names {
  const weights: Record<Weight, WeightRef> = {};
  return {
    weights,
    add(name, shape, tensors, more) {
      weights[name] = { tensors, shape, ...more };
      return name;
    },
  };
}
