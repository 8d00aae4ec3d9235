import { describe, expect, it } from 'vitest';
import { proportion, ratio } from './summary.js';

describe('a proportion', () => {
  // Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
  it.each([
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ])('%d of %d has the interval of Wilson', (right, n, low, high) => {
    const { value, interval } = proportion(right, n, '');
    expect(value).toBe(right / n);
    expect(interval[0]).toBeCloseTo(low, 4);
    expect(interval[1]).toBeCloseTo(high, 4);
  });

  it('has the standard error of a binomial share', () => {
    expect(proportion(30, 40, '').standardError).toBeCloseTo(Math.sqrt((0.75 * 0.25) / 40), 12);
  });
});

describe('a ratio', () => {
  it('is the mean with its standard error where all bases are equal', () => {
    const { value, standardError, n } = ratio(
      [1, 2, 6].map((amount) => ({ amount, of: 1 })),
      '',
    );
    expect(value).toBe(3);
    expect(standardError).toBeCloseTo(Math.sqrt(7 / 3), 12); // variance (4 + 1 + 9) / 2 = 7, of the mean of 3
    expect(n).toBe(3);
  });

  it('weights by the bases, and has no error where amounts follow them', () => {
    const { value, standardError } = ratio(
      [
        { amount: 2, of: 1 },
        { amount: 6, of: 3 },
      ],
      '',
    );
    expect([value, standardError]).toEqual([2, 0]);
  });

  it('has no error to state for one observation', () => {
    expect(ratio([{ amount: 1, of: 2 }], '').standardError).toBeNaN();
  });
});
