import { recall } from '@dsla/eval';
import type { Checkpoint } from '../checkpoint.js';
import { pause } from '../measure/pause.js';
import { type Rounds, repeat } from '../measure/repeat.js';
import type { Report } from '../report/report.js';
import type { Progress } from '../ui/progress.js';
import type { Running } from './load.js';

/** Planted pairs in a window: 12 to 16 in the training of the small checkpoints (tools/pretrain/data.py). */
export const recallPairs = 12;

export interface RecallProtocol {
  /** Windows at each range of distances. */
  readonly windows: number;
  /** Latest end, as in `Rounds`: the farthest and the nearest range are always measured, those between if time allows. */
  readonly until: number;
}

/** A range of distances from fact to question, both included, and the length of the windows in which they fit. */
export interface Distances {
  readonly length: number;
  readonly from: number;
  readonly to: number;
}

/**
 * Recall of every contender whose checkpoint was trained for it, all on the same questions. `texts`: ids of ordinary text by
 * checkpoint.
 */
export async function measureRecall(
  running: readonly Running[],
  texts: ReadonlyMap<Checkpoint, readonly number[]>,
  contexts: readonly number[],
  { windows, until }: RecallProtocol,
  progress: Progress,
  signal: AbortSignal,
): Promise<Report['recall']> {
  const able = running.filter(({ entry }) => entry.checkpoint.recallFormat);
  const ranges = distancesOf(contexts);
  if (able.length === 0 || ranges.length === 0) return [];
  const rows: Report['recall'] = [];
  progress.stage('recall', able.length * ranges.length);
  const order = [ranges.at(-1)!, ...ranges.slice(0, -1)];
  const rounds: Rounds = { least: Math.min(2, order.length), most: order.length, until };
  await repeat(rounds, async (index) => {
    const { length, from, to } = order[index]!;
    for (const { entry, contender, model } of able) {
      await pause(signal);
      const format = entry.checkpoint.recallFormat!;
      const options = {
        format,
        length,
        windows,
        pairs: recallPairs,
        batch: 1,
        signal,
        buckets: [[from, to + 1]] as const,
      };
      const [bucket] = await recall(model, texts.get(entry.checkpoint)!, options);
      const { value, n, interval } = bucket!;
      const estimate = { value, low: interval[0], high: interval[1], n };
      rows.push({ contender: contender.id, length, from, to, estimate });
      progress.step(contender.id);
    }
  });
  return rows.sort((a, b) => a.length - b.length);
}

/** In windows of these lengths: from half of the length to the farthest distance that it can hold. */
export function distancesOf(lengths: readonly number[]): readonly Distances[] {
  return lengths
    .filter((length) => length >= 64)
    .map((length) => ({ length, from: Math.floor(length / 2), to: 16 * (Math.floor((length - 1) / 16) - 1) + 8 }));
}
