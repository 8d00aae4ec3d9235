import { logProbabilities, recall } from '@dsla/eval';
import type { Tokenizer } from '@dsla/runtime';
import type { Checkpoint } from '../checkpoint.js';
import { pause } from '../measure/pause.js';
import { ratioDifference, ratioEstimate, type Share } from '../measure/statistics.js';
import type { Text } from '../measure/text.js';
import type { Report } from '../report/report.js';
import type { Progress } from '../ui/progress.js';
import type { Running } from './load.js';
import { type Prefix, prefixesOf, windowsOf } from './windows.js';

export interface QualityProtocol {
  /** Ascending, in tokens. */
  readonly contexts: readonly number[];
  /** For bits per byte. */
  readonly windows: number;
  /** For recall, at each distance. */
  readonly recallWindows: number;
}

export interface Quality extends Pick<Report, 'bitsPerByte' | 'excess' | 'recall'> {
  readonly gaps: readonly string[];
}

/** A window in the ids of one checkpoint. */
interface Reading {
  readonly ids: readonly number[];
  /** One a context. */
  readonly prefixes: readonly Prefix[];
}

/** Bits per byte and recall of every contender on the same windows, and what each costs above the softmax model. */
export async function measureQuality(
  running: readonly Running[],
  { content }: Text,
  protocol: QualityProtocol,
  progress: Progress,
  signal: AbortSignal,
): Promise<Quality> {
  const readings = readingsOf(running, content, protocol);
  const bitsPerByte: Report['bitsPerByte'] = [];
  const excess: Report['excess'] = [];
  const recalled: Report['recall'] = [];
  let softmax: Share[][] | undefined;
  progress.stage('quality', running.length);
  for (const each of running) {
    const { entry, contender } = each;
    const windows = readings.get(entry.checkpoint)!;
    const shares = await sharesOf(each, windows, signal); // [contexts][windows]
    for (const [at, length] of protocol.contexts.entries()) {
      const row = { contender: contender.id, length };
      bitsPerByte.push({ ...row, estimate: ratioEstimate(shares[at]!) });
      if (softmax) excess.push({ ...row, estimate: ratioDifference(softmax[at]!, shares[at]!) });
    }
    softmax ??= shares;
    recalled.push(...(await recallOf(each, windows, protocol, signal)));
    progress.step(contender.id);
  }
  const gaps = [...new Set(running.map(({ entry }) => entry.checkpoint))]
    .filter(({ recallFormat }) => !recallFormat)
    .map(({ name }) => `recall of ${name}: there is no recall.json beside it`);
  return { bitsPerByte, excess, recall: recalled, gaps };
}

/** Bits and bytes of every window at every context: [contexts][windows]. */
async function sharesOf({ model }: Running, windows: readonly Reading[], signal: AbortSignal): Promise<Share[][]> {
  const shares: Share[][] = windows[0]!.prefixes.map(() => []);
  for (const { ids, prefixes } of windows) {
    await pause(signal);
    const [scores] = await logProbabilities(model, [{ ids, from: 1 }], { signal });
    for (const [at, { tokens, bytes }] of prefixes.entries()) {
      const logarithms = scores!.subarray(0, tokens - 1).reduce((sum, score) => sum + score, 0);
      shares[at]!.push({ amount: -logarithms / Math.LN2, of: bytes });
    }
  }
  return shares;
}

/** As in training (tools/pretrain/data.py), where it is 12 to 16. */
export const recallPairs = 12;

/** Distances up to each context, in windows of its length: a shorter one would hide the far end, a longer one costs time. */
async function recallOf(
  { entry, contender, model }: Running,
  windows: readonly Reading[],
  { contexts, recallWindows }: QualityProtocol,
  signal: AbortSignal,
): Promise<Report['recall']> {
  const format = entry.checkpoint.recallFormat;
  if (!format) return [];
  const own = windows.flatMap(({ ids }) => ids.slice(1));
  const text = [...own, ...own]; // even one window is longer than itself without its begin token
  const rows: Report['recall'] = [];
  for (const { length, from, to } of distances(contexts)) {
    await pause(signal);
    const options = { format, length, windows: recallWindows, pairs: recallPairs, batch: 1, signal };
    const [bucket] = await recall(model, text, { ...options, buckets: [[from, to + 1]] });
    const { value, n, interval } = bucket!;
    rows.push({
      contender: contender.id,
      length,
      from,
      to,
      estimate: { value, low: interval[0], high: interval[1], n },
    });
  }
  return rows;
}

/** Of windows of these lengths: from half of the length to the farthest that it can hold. */
export function distances(contexts: readonly number[]): readonly { length: number; from: number; to: number }[] {
  return contexts
    .filter((length) => length >= 64)
    .map((length) => ({ length, from: Math.floor(length / 2), to: 16 * (Math.floor((length - 1) / 16) - 1) + 8 }));
}

function readingsOf(
  running: readonly Running[],
  text: string,
  { contexts, windows: count }: QualityProtocol,
): ReadonlyMap<Checkpoint, readonly Reading[]> {
  const tokenizers = new Map<Checkpoint, Tokenizer>(
    running.map(({ entry, model }) => [entry.checkpoint, model.tokenizer]),
  );
  const windows = windowsOf(text, [...tokenizers.values()], contexts, count);
  return new Map(
    [...tokenizers].map(([checkpoint, tokenizer]) => [
      checkpoint,
      windows.map((window) => {
        const ids = tokenizer.encode(window.text);
        return { ids, prefixes: prefixesOf(tokenizer, ids, window) };
      }),
    ]),
  );
}
