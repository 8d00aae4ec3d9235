import type { Contender, Family, Report } from './report.js';

/** One mark of a chart. */
export interface Point {
  readonly contender: Contender;
  readonly length: number;
  readonly y: number;
  readonly low: number | null;
  readonly high: number | null;
}

/** What people read for a family. */
export const familyTitles: Readonly<Record<Family, string>> = {
  softmax: 'softmax',
  zamba: 'Zamba',
  foldable: 'DSLA',
  untuned: 'DSLA, untuned',
  window: 'sliding window',
  single: 'single state',
  published: 'published DSLA',
};

/** The contenders by id. */
export function contendersOf(report: Report): ReadonlyMap<string, Contender> {
  return new Map(report.contenders.map((contender) => [contender.id, contender]));
}

export function qualityPoints(report: Report, of: 'bitsPerByte' | 'excess' | 'recall'): readonly Point[] {
  const contenders = contendersOf(report);
  return report[of].map(({ contender, length, estimate }) => ({
    contender: contenders.get(contender)!,
    length,
    y: estimate.value,
    low: estimate.low,
    high: estimate.high,
  }));
}

/** Tokens a second, mean and one standard deviation. */
export function speedPoints(report: Report, test: 'prefill' | 'decode', backend: string): readonly Point[] {
  const contenders = contendersOf(report);
  return report.speed
    .filter((row) => row.test === test && row.backend === backend)
    .map(({ contender, length, mean, sd }) => ({
      contender: contenders.get(contender)!,
      length,
      y: mean,
      low: sd === null ? null : Math.max(0, mean - sd),
      high: sd === null ? null : mean + sd,
    }));
}

/** Bytes of one sequence's cache. */
export function cachePoints(report: Report): readonly Point[] {
  const contenders = contendersOf(report);
  return report.cache.map(({ contender, length, bytes }) => ({
    contender: contenders.get(contender)!,
    length,
    y: bytes,
    low: null,
    high: null,
  }));
}
