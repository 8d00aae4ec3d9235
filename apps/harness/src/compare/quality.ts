import { logProbabilities, recall } from '@dsla/eval';
import type { Tokenizer } from '@dsla/runtime';
import type { Checkpoint } from '../checkpoint.js';
import { pause } from '../measure/pause.js';
import { type Rounds, repeat } from '../measure/repeat.js';
import { ratioDifference, ratioEstimate, type Share } from '../measure/statistics.js';
import type { Text } from '../measure/text.js';
import type { Report } from '../report/report.js';
import type { Progress } from '../ui/progress.js';
import type { Running } from './load.js';
import { type Prefix, prefixesOf, windowsOf } from './windows.js';

export interface QualityProtocol {
  /** Ascending, in tokens. */
  readonly contexts: readonly number[];
  /** Windows of text for bits per byte; the text is divided among the most that there can be. */
  readonly windows: Rounds;
  /** For recall, at each distance. */
  readonly recallWindows: number;
}

export interface Quality extends Pick<Report, 'bitsPerByte' | 'excess' | 'recall'> {
  /** Windows read for bits per byte. */
  readonly windows: number;
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
  const shares = new Map(running.map((each) => [each, protocol.contexts.map((): Share[] => [])])); // [contexts][windows]
  progress.stage('bits per byte', running.length * protocol.windows.most);
  const windows = await repeat(protocol.windows, async (index) => {
    for (const each of running) {
      const reading = readings.get(each.entry.checkpoint)![index]!;
      const own = await sharesOf(each, reading, signal); // [contexts]
      for (const [at, share] of own.entries()) shares.get(each)![at]!.push(share);
      progress.step(each.contender.id);
    }
  });
  progress.stage('recall', running.length);
  const recalled: Report['recall'] = [];
  for (const each of running) {
    recalled.push(...(await recallOf(each, readings.get(each.entry.checkpoint)!, protocol, signal)));
    progress.step(each.contender.id);
  }
  const gaps = [...new Set(running.map(({ entry }) => entry.checkpoint))]
    .filter(({ recallFormat }) => !recallFormat)
    .map(({ name }) => `recall of ${name}: there is no recall.json beside it`);
  return { ...estimates(shares, protocol.contexts), recall: recalled, windows, gaps };
}

function estimates(
  shares: ReadonlyMap<Running, readonly Share[][]>,
  contexts: readonly number[],
): Pick<Quality, 'bitsPerByte' | 'excess'> {
  const [softmax] = shares.values();
  const rows = [...shares].flatMap(([{ contender }, own]) =>
    contexts.map((length, at) => ({
      row: { contender: contender.id, length },
      own: own[at]!,
      baseline: own === softmax ? undefined : softmax![at]!,
    })),
  );
  return {
    bitsPerByte: rows.map(({ row, own }) => ({ ...row, estimate: ratioEstimate(own) })),
    excess: rows.flatMap(({ row, own, baseline }) =>
      baseline ? [{ ...row, estimate: ratioDifference(baseline, own) }] : [],
    ),
  };
}

/** Bits and bytes of a window at every context. */
async function sharesOf({ model }: Running, { ids, prefixes }: Reading, signal: AbortSignal): Promise<Share[]> {
  await pause(signal);
  const [scores] = await logProbabilities(model, [{ ids, from: 1 }], { signal });
  return prefixes.map(({ tokens, bytes }) => {
    const logarithms = scores!.subarray(0, tokens - 1).reduce((sum, score) => sum + score, 0);
    return { amount: -logarithms / Math.LN2, of: bytes };
  });
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
  { contexts, windows }: QualityProtocol,
): ReadonlyMap<Checkpoint, readonly Reading[]> {
  const tokenizers = new Map<Checkpoint, Tokenizer>(
    running.map(({ entry, model }) => [entry.checkpoint, model.tokenizer]),
  );
  const texts = windowsOf(text, [...tokenizers.values()], contexts, windows.most);
  return new Map(
    [...tokenizers].map(([checkpoint, tokenizer]) => [
      checkpoint,
      texts.map((window) => {
        const ids = tokenizer.encode(window.text);
        return { ids, prefixes: prefixesOf(tokenizer, ids, window) };
      }),
    ]),
  );
}
