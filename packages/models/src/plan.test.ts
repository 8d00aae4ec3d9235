import { expect, it } from 'vitest';
import { planAt } from './index.js';

it('converts a prefix of the order', () => {
  const order = [2, 0, 3, 1];
  expect(planAt(order, 0, 'm', 4)).toEqual(['default', 'default', 'default', 'default']);
  expect(planAt(order, 1, 'm', 4)).toEqual(['default', 'default', 'm', 'default']);
  expect(planAt(order, 3, 'm', 4)).toEqual(['m', 'default', 'm', 'm']);
  expect(planAt(order, 4, 'm', 4)).toEqual(['m', 'm', 'm', 'm']);
  expect(planAt([], 0, 'm', 0)).toEqual([]);
});

it.each([-1, 3, 0.5, Number.NaN])('refuses level %d of two layers', (level) => {
  expect(() => planAt([1, 0], level, 'm', 2)).toThrow('level must be an integer in 0..2');
});

it('says why no level of a model without exchangeable layers is valid', () => {
  expect(() => planAt([], 1, 'm', 0)).toThrow('No layer of this model can be exchanged.');
});

it.each([[[0]], [[0, 0]], [[0, 2]], [[0, 1, 2]], [[0.5, 1]]])('refuses the order %j of two layers', (order) => {
  expect(() => planAt(order, 0, 'm', 2)).toThrow('must hold each of the 2 convertible layers once');
});
