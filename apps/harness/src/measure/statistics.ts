import { mean, median, sampleStandardDeviation } from 'simple-statistics';

/** A value with its 95 % interval; the interval is null where one observation cannot give one. */
export interface Estimate {
  readonly value: number;
  readonly low: number | null;
  readonly high: number | null;
  /** Independent observations behind it. */
  readonly n: number;
}

export interface Summary {
  readonly n: number;
  readonly mean: number;
  /** Sample standard deviation (n - 1); null for one sample. */
  readonly sd: number | null;
  readonly median: number;
}

/** @throws Error for an empty list. */
export function summarise(samples: readonly number[]): Summary {
  const values = [...samples];
  return {
    n: values.length,
    mean: mean(values),
    sd: values.length < 2 ? null : sampleStandardDeviation(values),
    median: median(values),
  };
}

/** Mean with the interval of Student's t. */
export function meanEstimate(samples: readonly number[]): Estimate {
  const { n, mean: value, sd } = summarise(samples);
  return around(value, sd === null ? null : (studentQuantile(n - 1) * sd) / Math.sqrt(n), n);
}

/** Part of a ratio: `amount` (bits) for every `of` (bytes). */
export interface Share {
  readonly amount: number;
  readonly of: number;
}

/** Sum of amounts over sum of bases, with the linearised interval of a ratio (Cochran, Sampling Techniques, 6.4). */
export function ratioEstimate(shares: readonly Share[]): Estimate {
  const { value, residuals } = ratio(shares);
  return withResiduals(value, residuals);
}

/** Ratio of `b` minus ratio of `a`, window by window: what the pairs have in common cancels. */
export function ratioDifference(a: readonly Share[], b: readonly Share[]): Estimate {
  const [from, to] = [ratio(a), ratio(b)];
  return withResiduals(
    to.value - from.value,
    to.residuals.map((residual, index) => residual - from.residuals[index]!),
  );
}

function ratio(shares: readonly Share[]): { readonly value: number; readonly residuals: readonly number[] } {
  const base = shares.reduce((sum, share) => sum + share.of, 0);
  const value = shares.reduce((sum, share) => sum + share.amount, 0) / base;
  return { value, residuals: shares.map((share) => (share.amount - value * share.of) / base) };
}

/** The variance of a sum of n residuals is n times theirs. */
function withResiduals(value: number, residuals: readonly number[]): Estimate {
  const n = residuals.length;
  if (n < 2) return around(value, null, n);
  return around(value, studentQuantile(n - 1) * sampleStandardDeviation([...residuals]) * Math.sqrt(n), n);
}

// 97.5 % quantiles: normal, and Student's t for 1 to 9 degrees of freedom.
const normalQuantile = 1.959963984540054;
const students = [12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216];

/** 97.5 % quantile of Student's t; above the table Fisher's expansion (Abramowitz and Stegun 26.7.5), good to 2e-4. */
export function studentQuantile(freedom: number): number {
  const tabled = students[freedom - 1];
  if (tabled !== undefined) return tabled;
  const z = normalQuantile;
  return (
    z +
    (z ** 3 + z) / (4 * freedom) +
    (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2) +
    (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * freedom ** 3)
  );
}

function around(value: number, half: number | null, n: number): Estimate {
  return { value, low: half === null ? null : value - half, high: half === null ? null : value + half, n };
}
