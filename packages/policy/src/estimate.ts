import { DslaError } from '@dsla/spec';
import { mean, sampleStandardDeviation } from 'simple-statistics';

/** A mean with its two-sided confidence interval, which one observation cannot give: null. */
export interface Estimate {
  readonly value: number;
  readonly low: number | null;
  readonly high: number | null;
  /** Independent observations behind it. */
  readonly n: number;
}

/**
 * Mean of independent observations with the interval of Student's t. Pass differences to level 0 on the same texts: what the
 * pairs have in common cancels.
 * @throws DslaError E_INPUT for no observation, one that is not finite, or a confidence outside (0, 1)
 */
export function estimate(samples: readonly number[], confidence = 0.95): Estimate {
  const n = samples.length;
  const wrong = samples.find((sample) => !Number.isFinite(sample));
  if (n === 0 || wrong !== undefined) {
    const rule = 'it needs observations, all finite';
    throw new DslaError('E_INPUT', { where: 'estimate', rule, got: wrong ?? 'none' });
  }
  if (!(confidence > 0 && confidence < 1)) {
    throw new DslaError('E_INPUT', { where: 'estimate', rule: 'the confidence must be in (0, 1)', got: confidence });
  }
  const value = mean([...samples]);
  if (n === 1) return { value, low: null, high: null, n };
  const half = (studentQuantile(n - 1, confidence) * sampleStandardDeviation([...samples])) / Math.sqrt(n);
  return { value, low: value - half, high: value + half, n };
}

/** t with P(|T| < t) = confidence, by bisection. */
export function studentQuantile(freedom: number, confidence: number): number {
  let [low, high] = [0, 1];
  while (within(high, freedom) < confidence) high *= 2;
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (within(middle, freedom) < confidence) low = middle;
    else high = middle;
  }
  return high;
}

/** P(|T| < t) for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4). */
function within(t: number, freedom: number): number {
  const angle = Math.atan(t / Math.sqrt(freedom));
  const [sin, square] = [Math.sin(angle), Math.cos(angle) ** 2];
  const odd = freedom % 2;
  let term = odd ? Math.cos(angle) : 1;
  let sum = freedom === 1 ? 0 : term;
  for (let k = 2 + odd; k < freedom; k += 2) {
    term *= ((k - 1) / k) * square;
    sum += term;
  }
  return odd ? (2 / Math.PI) * (angle + sin * sum) : sin * sum;
}
