import { describe, expect, it } from 'vitest';
import { meanEstimate, ratioDifference, ratioEstimate, studentQuantile, summarise } from './statistics.js';

describe('summarise', () => {
  it('gives the textbook values', () => {
    // 2, 4, 4, 4, 5, 5, 7, 9: mean 5, population sd 2, so sample sd = sqrt(32 / 7).
    const summary = summarise([9, 2, 4, 5, 4, 7, 4, 5]);
    expect(summary).toMatchObject({ n: 8, mean: 5, median: 4.5 });
    expect(summary.sd).toBeCloseTo(2.138089935, 8);
  });

  it('has no deviation for one sample', () => {
    expect(summarise([3])).toEqual({ n: 1, mean: 3, sd: null, median: 3 });
  });

  it('refuses an empty list', () => {
    expect(() => summarise([])).toThrow();
  });
});

describe('studentQuantile', () => {
  it.each([
    [1, 12.706],
    [5, 2.571],
    [10, 2.228],
    [20, 2.086],
    [30, 2.042],
    [120, 1.98],
  ])('t(0.975, %i) = %d, as in the printed tables', (freedom, quantile) => {
    expect(studentQuantile(freedom)).toBeCloseTo(quantile, 3);
  });
});

describe('meanEstimate', () => {
  it('is the interval of R t.test on the first ten differences of the sleep data', () => {
    // t.test(c(1.2, 2.4, 1.3, 1.3, 0, 1, 1.8, 0.8, 4.6, 1.4)): mean 1.58, 95 % interval 0.7001142 to 2.4598858.
    const estimate = meanEstimate([1.2, 2.4, 1.3, 1.3, 0, 1, 1.8, 0.8, 4.6, 1.4]);
    expect(estimate.value).toBeCloseTo(1.58, 10);
    expect(estimate.low).toBeCloseTo(0.7001142, 4);
    expect(estimate.high).toBeCloseTo(2.4598858, 4);
  });

  it('has no interval for one sample', () => {
    expect(meanEstimate([2])).toEqual({ value: 2, low: null, high: null, n: 1 });
  });
});

describe('ratioEstimate', () => {
  it('weighs by the base', () => {
    expect(
      ratioEstimate([
        { amount: 1, of: 1 },
        { amount: 9, of: 4 },
      ]).value,
    ).toBe(2);
  });

  it('is the mean with its interval where all bases are 1', () => {
    const samples = [1.2, 2.4, 1.3, 1.3, 0, 1, 1.8, 0.8, 4.6, 1.4];
    const ratio = ratioEstimate(samples.map((amount) => ({ amount, of: 1 })));
    const plain = meanEstimate(samples);
    expect(ratio.value).toBeCloseTo(plain.value, 12);
    expect(ratio.low).toBeCloseTo(plain.low!, 12);
    expect(ratio.high).toBeCloseTo(plain.high!, 12);
  });
});

describe('ratioDifference', () => {
  it('cancels what the pairs share', () => {
    const a = [10, 20, 40].map((amount) => ({ amount, of: 2 }));
    const b = a.map(({ amount, of }) => ({ amount: amount + 1, of }));
    expect(ratioDifference(a, b)).toEqual({ value: 0.5, low: 0.5, high: 0.5, n: 3 });
  });
});
