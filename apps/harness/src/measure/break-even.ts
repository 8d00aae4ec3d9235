import type { Crossing } from '../report/report.js';

/** Cost (milliseconds or bytes) by length in tokens, ascending. */
export type Curve = readonly { readonly length: number; readonly cost: number }[];

/**
 * The length from which `other` costs less than `baseline` at every longer measured length, by straight lines between the
 * measured points. 'always': from the shortest measured length; 'never': not at the longest.
 */
export function breakEven(baseline: Curve, other: Curve): Crossing['from'] {
  const gap = baseline.map((point, index) => ({ length: point.length, gain: point.cost - other[index]!.cost }));
  const last = gap.findLastIndex(({ gain }) => gain <= 0);
  if (last === -1) return 'always';
  if (last === gap.length - 1) return 'never';
  const [before, after] = [gap[last]!, gap[last + 1]!];
  const share = -before.gain / (after.gain - before.gain);
  return before.length + share * (after.length - before.length);
}
