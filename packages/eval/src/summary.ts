/** A measured number with what is needed to report it. */
export interface Summary {
  readonly value: number;
  /** Observations behind it. */
  readonly n: number;
  /** Of the value; NaN for a single observation. */
  readonly standardError: number;
  /** 95 % interval. */
  readonly interval: readonly [low: number, high: number];
  /** How it was measured, in words. */
  readonly protocol: string;
}

/** 97.5 % quantile of the normal distribution. */
const z = 1.959963984540054;

/** Share of successes, with Wilson's score interval (Wilson 1927), which holds near 0 and 1, too. */
export function proportion(right: number, n: number, protocol: string): Summary {
  const value = right / n;
  const centre = (value + z ** 2 / (2 * n)) / (1 + z ** 2 / n);
  const half = (z / (1 + z ** 2 / n)) * Math.sqrt((value * (1 - value)) / n + z ** 2 / (4 * n ** 2));
  const interval = [Math.max(0, centre - half), Math.min(1, centre + half)] as const;
  return { value, n, standardError: Math.sqrt((value * (1 - value)) / n), interval, protocol };
}

/** Sum of amounts over sum of bases, with the linearised error of a ratio (Cochran, Sampling Techniques, 6.4). */
export function ratio(shares: readonly { readonly amount: number; readonly of: number }[], protocol: string): Summary {
  const n = shares.length;
  const base = shares.reduce((sum, share) => sum + share.of, 0);
  const value = shares.reduce((sum, share) => sum + share.amount, 0) / base;
  const squares = shares.reduce((sum, { amount, of }) => sum + (amount - value * of) ** 2, 0);
  const standardError = n < 2 ? Number.NaN : Math.sqrt((squares * n) / (n - 1)) / base;
  return { value, n, standardError, interval: [value - z * standardError, value + z * standardError], protocol };
}
