import { formatBytes, significant } from '../ui/units.js';
import { familyTitles } from './points.js';
import type { Contender, Crossing, Report } from './report.js';

/** A contender with everything that was measured of it, for tables: by length, in the order of `lengths`. */
export interface Row {
  readonly contender: Contender;
  /** "6 / 8", or "–" for a model that is not converted. */
  readonly level: string;
  readonly bitsPerByte: string;
  readonly excess: string;
  readonly recall: string;
  readonly prefill: string;
  readonly decode: string;
  readonly cache: string;
  readonly weights: string;
  readonly decodeFrom: string;
  readonly cacheFrom: string;
}

const nothing = '–';

/** One row a contender, everything at one length (and on one backend); recall at the farthest distance. */
export function rowsAt(report: Report, length: number, backend: string): readonly Row[] {
  const far = Math.max(...report.recall.map((row) => row.length));
  return report.contenders.map((contender) => {
    const at = <T extends { readonly contender: string; readonly length: number }>(rows: readonly T[]): T | undefined =>
      rows.find((row) => row.contender === contender.id && row.length === length);
    const speed = (test: 'prefill' | 'decode') => {
      const row = at(report.speed.filter((each) => each.test === test && each.backend === backend));
      return row ? spread(row.mean, row.sd) : nothing;
    };
    const cache = at(report.cache);
    const crossing = (quantity: Crossing['quantity']) =>
      formatCrossing(
        report.crossings.find(
          (each) =>
            each.contender === contender.id &&
            each.quantity === quantity &&
            (quantity === 'cache' || each.backend === backend),
        ),
      );
    return {
      contender,
      level: contender.family === 'zamba' ? nothing : `${contender.level} / ${contender.layers}`,
      bitsPerByte: formatEstimate(at(report.bitsPerByte)?.estimate, 3),
      excess: formatEstimate(at(report.excess)?.estimate, 3, '+'),
      recall: formatShare(report.recall.find((row) => row.contender === contender.id && row.length === far)?.estimate),
      prefill: speed('prefill'),
      decode: speed('decode'),
      cache: cache ? formatBytes(cache.bytes) : nothing,
      weights: formatBytes(contender.weightBytes),
      decodeFrom: crossing('decode'),
      cacheFrom: crossing('cache'),
    };
  });
}

/** Contexts at which anything was measured, ascending. */
export function lengthsOf(report: Report): readonly number[] {
  const rows = [...report.bitsPerByte, ...report.speed, ...report.cache];
  return [...new Set(rows.map(({ length }) => length))].sort((a, b) => a - b);
}

/** What a row is called beside its level. */
export function nameOf({ family, tuned }: Pick<Contender, 'family' | 'tuned'>): string {
  const trainable = family === 'foldable' || family === 'single' || family === 'published';
  return trainable && !tuned ? `${familyTitles[family]}, untuned` : familyTitles[family];
}

/** "1.234 ± 0.056", the half width of the 95 % interval. */
function formatEstimate(estimate: Report['recall'][number]['estimate'] | undefined, digits: number, sign = ''): string {
  if (!estimate) return nothing;
  const { value, low, high } = estimate;
  const text = `${value >= 0 ? sign : '−'}${Math.abs(value).toFixed(digits)}`;
  return low === null || high === null ? text : `${text} ± ${((high - low) / 2).toFixed(digits)}`;
}

/** "0.94 (0.70–0.99)": near 0 and 1 the interval is not symmetric. */
function formatShare(estimate: Report['recall'][number]['estimate'] | undefined): string {
  if (!estimate) return nothing;
  const { value, low, high } = estimate;
  const text = value.toFixed(2);
  return low === null || high === null ? text : `${text} (${low.toFixed(2)}–${high.toFixed(2)})`;
}

/** "1234 ± 56", one standard deviation. */
function spread(mean: number, sd: number | null): string {
  return sd === null ? significant(mean) : `${significant(mean)} ± ${significant(sd)}`;
}

/** "≥ 1200", "always", "never": within the measured lengths. */
function formatCrossing(crossing: Crossing | undefined): string {
  if (!crossing) return nothing;
  return typeof crossing.from === 'string' ? crossing.from : `≥ ${Math.round(crossing.from)}`;
}
