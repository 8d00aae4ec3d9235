import { DslaError } from '@dsla/spec';
import type { Plan } from './model.js';

/**
 * The plan of a level: layers order[0..level) use `mixer`, the others the model's own. Only prefixes of one order are plans,
 * because chained tuning makes only prefixes valid (arXiv 2506.09316, section 4.4).
 * @throws DslaError E_INPUT when the order is not a permutation of 0..layers-1 or the level is not in 0..layers.
 */
export function planAt(order: readonly number[], level: number, mixer: string, layers: number): Plan {
  const sorted = [...order].sort((a, b) => a - b);
  if (order.length !== layers || sorted.some((layer, index) => layer !== index)) {
    throw new DslaError('E_INPUT', {
      where: 'planAt',
      rule: `the order must hold each of the ${layers} convertible layers once`,
      got: order,
    });
  }
  if (!Number.isInteger(level) || level < 0 || level > layers) {
    throw new DslaError('E_INPUT', {
      where: 'planAt',
      rule: `the level must be an integer in 0..${layers}`,
      got: level,
      cure: layers === 0 ? 'No layer of this model can be exchanged.' : `${layers} exchanges every layer, 0 none.`,
    });
  }
  const converted = new Set(order.slice(0, level));
  return order.map((_, layer) => (converted.has(layer) ? mixer : 'default'));
}
