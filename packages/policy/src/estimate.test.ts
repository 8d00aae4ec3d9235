import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { estimate, studentQuantile } from './estimate.js';

describe('studentQuantile', () => {
  // Printed tables: Abramowitz and Stegun, table 26.10.
  it.each([
    [1, 0.95, 12.706],
    [2, 0.95, 4.303],
    [3, 0.9, 2.353],
    [4, 0.98, 3.747],
    [7, 0.99, 3.499],
    [10, 0.95, 2.228],
    [30, 0.5, 0.683],
    [120, 0.95, 1.98],
  ])('%d degrees of freedom, %d', (freedom, confidence, want) => {
    expect(studentQuantile(freedom, confidence)).toBeCloseTo(want, 3);
  });
});

describe('estimate', () => {
  it('is mean and interval', () => {
    // mean 2, standard deviation 1, t(2) = 4.302653
    const { value, low, high, n } = estimate([1, 2, 3]);
    expect([value, n]).toEqual([2, 3]);
    expect([low, high]).toEqual([expect.closeTo(2 - 2.484138, 6), expect.closeTo(2 + 2.484138, 6)]);
  });

  it('has no interval for one observation', () => {
    expect(estimate([5])).toEqual({ value: 5, low: null, high: null, n: 1 });
  });

  it('covers about as often as it says', () => {
    // Sums of two uniforms around 0; 2,000 draws, so the share covered has a standard deviation of 0.0067 at 0.9.
    let [covered, state] = [0, 12345];
    const uniform = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32 - 0.5;
    };
    for (let run = 0; run < 2000; run++) {
      const { low, high } = estimate(
        Array.from({ length: 5 }, () => uniform() + uniform()),
        0.9,
      );
      if (low! <= 0 && high! >= 0) covered++;
    }
    expect(Math.abs(covered / 2000 - 0.9)).toBeLessThan(0.03);
  });

  it('refuses what it cannot use', () => {
    expect(() => estimate([])).toThrow(/needs observations/);
    expect(() => estimate([1, Number.NaN])).toThrow(/got NaN/);
    expect(() => estimate([1], 1)).toThrow(/in \(0, 1\)/);
  });

  it('moves and scales with its observations', () => {
    const samples = fc.array(fc.double({ min: -10, max: 10, noNaN: true }), { minLength: 2, maxLength: 9 });
    fc.assert(
      fc.property(samples, fc.double({ min: 0.5, max: 4, noNaN: true }), (values, by) => {
        const [one, other] = [estimate(values), estimate(values.map((x) => by * x + 3))];
        for (const key of ['value', 'low', 'high'] as const) expect(other[key]).toBeCloseTo(by * one[key]! + 3, 8);
      }),
    );
  });
});
