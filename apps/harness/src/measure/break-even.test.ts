import { expect, it } from 'vitest';
import { breakEven } from './break-even.js';

const curve = (...costs: number[]) => costs.map((cost, index) => ({ length: 512 * 2 ** index, cost }));

it('interpolates between the measured lengths', () => {
  // Costs 1 more at 512 and 3 less at 1,024: a quarter of the way.
  expect(breakEven(curve(4, 8), curve(5, 5))).toBe(512 + 128);
});

it('takes the last crossing, so that every longer length gains', () => {
  expect(breakEven(curve(4, 4, 4, 4), curve(3, 5, 5, 3))).toBe(2048 + 1024);
});

it('says always and never for the measured range', () => {
  expect(breakEven(curve(2, 3), curve(1, 1))).toBe('always');
  expect(breakEven(curve(2, 3), curve(1, 3))).toBe('never');
  expect(breakEven(curve(2, 2), curve(2, 1))).toBe(512);
});
