import type { Row, StepBatch } from '@dsla/spec';
import { invalid } from './errors.js';

/** A row that a run serves; the served rows lie end to end in the run's frame. */
export interface FrameRow extends Row {
  /** Index in the batch. */
  readonly index: number;
  /** First token in the batch. */
  readonly first: number;
  /** First token in the frame. */
  readonly start: number;
}

/** The rows of a batch, or those that `only` names. @throws DslaError E_INPUT */
export function framed(batch: StepBatch, layer: string, only: readonly number[] | undefined): readonly FrameRow[] {
  const known = batch.rows.length;
  const wrong = only?.find((row, at) => !Number.isInteger(row) || row < 0 || row >= known || only.indexOf(row) !== at);
  if (wrong !== undefined) throw invalid(`run ${layer}`, `rows must be different indices in 0..${known - 1}`, only);
  let total = 0;
  const firsts = batch.rows.map(({ count }) => {
    total += count;
    return total - count;
  });
  let start = 0;
  return (only ?? batch.rows.map((_, index) => index)).map((index) => {
    const row = batch.rows[index]!;
    start += row.count;
    return { ...row, index, first: firsts[index]!, start: start - row.count };
  });
}

/** The frame is a stretch of the batch. */
export function contiguous(rows: readonly FrameRow[]): boolean {
  return rows.every(({ index }, at) => index === rows[0]!.index + at);
}
