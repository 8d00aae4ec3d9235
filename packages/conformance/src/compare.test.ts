import { describe, expect, it } from 'vitest';
import { expectClose, expectEqualBits, peakRatio, rmsRatio } from './compare.js';

describe('rmsRatio', () => {
  it('is the length of the error over the length of the truth', () =>
    expect(rmsRatio([3, 4.5], [3, 4])).toBeCloseTo(0.1, 12));
  it('is the length of the error where the truth is zero', () => expect(rmsRatio([3, 4], [0, 0])).toBe(5));
});

it('peakRatio is the largest error in units of the RMS of the truth', () =>
  expect(peakRatio([1, 1, 1, 3], [1, 1, 1, 1])).toBe(2));

describe('expectClose', () => {
  const close = (got: number[], want: number[]) => () => expectClose('x', got, want, 1e-2, 5);

  it('accepts what is close', () => expect(close([1.001, 2], [1, 2])).not.toThrow());
  it('refuses a large RMS error', () =>
    expect(close([1.1, 2], [1, 2])).toThrow(/x: RMS ratio 4\.47e-2.*at most 0\.01/));
  it('refuses one large difference among many small ones', () => {
    const want = new Array(1000).fill(1);
    expect(close([1.2, ...want.slice(1)], want)).toThrow(/largest difference 2\.00e-1.*at most 0\.05/);
  });
  it('refuses NaN and infinity, whatever the tolerance', () => {
    for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY])
      expect(() => expectClose('x', [1, wrong], [1, 2], Number.POSITIVE_INFINITY, 1)).toThrow(/value 1 of 2 is/);
  });
  it('refuses a truth that is not finite', () => expect(close([1], [Number.NaN])).toThrow(/the test is wrong/));
  it('refuses another length', () => expect(close([1, 2], [1])).toThrow(/2 values, expected 1/));
});

describe('expectEqualBits', () => {
  const bits = (got: number, want: number) => () =>
    expectEqualBits('x', Float32Array.of(1, got), Float32Array.of(1, want));

  it('accepts the same', () => expect(bits(0.1, 0.1)).not.toThrow());
  it('refuses the next float', () => expect(bits(1 + 2 ** -23, 1)).toThrow(/value 1/));
  it('tells 0 from -0', () => expect(bits(0, -0)).toThrow(/value 1/));
});
