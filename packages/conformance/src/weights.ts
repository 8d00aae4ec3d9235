import { DslaError, elementCount, f32, fromFloat16, type Named, toFloat16, type WeightSource } from '@dsla/spec';
import { normals, type Spread } from './random.js';

/** Shape and content of a weight: given numbers, or normal ones drawn by the weight's name (std: last dimension^-1/2). */
export interface WeightPlan extends Spread {
  readonly shape: readonly number[];
  readonly data?: Float32Array;
}

/**
 * Weights made on the spot: equal names have equal values, on every device. Those drawn are numbers of float16, so that what a
 * device is off by is its own doing and not what any rounding of the weights would make.
 */
export function plannedWeights(plans: Named<WeightPlan>): WeightSource {
  const plan = (name: string): WeightPlan => {
    const found = plans[name];
    if (!found)
      throw new DslaError('E_CONFIG', {
        where: 'weights',
        rule: `must be one of ${Object.keys(plans).join(', ')}`,
        got: name,
      });
    return found;
  };
  return {
    spec: (name) => ({ storage: 'f32', shape: plan(name).shape }),
    async read(name, as) {
      const { shape, data, mean = 0, std = shape.at(-1)! ** -0.5 } = plan(name);
      if (data) return as === 'f16' ? { dtype: 'f16', shape, data: toFloat16(data) } : f32(shape, data.slice());
      const bits = toFloat16(normals(`weight ${name}`, elementCount(shape), { mean, std }));
      return as === 'f16' ? { dtype: 'f16', shape, data: bits } : f32(shape, fromFloat16(bits));
    },
  };
}
