import { logProbabilities } from '@dsla/eval';
import type { Checkpoint } from '../checkpoint.js';
import { pause } from '../measure/pause.js';
import { type Rounds, repeat } from '../measure/repeat.js';
import { ratioDifference, ratioEstimate, type Share } from '../measure/statistics.js';
import type { Text } from '../measure/text.js';
import type { Report } from '../report/report.js';
import type { Progress } from '../ui/progress.js';
import type { Running } from './load.js';
import { measureRecall, type RecallProtocol } from './recall.js';
import { type Prefix, prefixesOf, windowAt } from './windows.js';

export interface QualityProtocol {
  /** Ascending, in tokens. */
  readonly contexts: readonly number[];
  /** Windows of text for bits per byte; the text is divided among the most that there can be. */
  readonly windows: Rounds;
  readonly recall: RecallProtocol;
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
  { contexts, windows, recall }: QualityProtocol,
  progress: Progress,
  signal: AbortSignal,
): Promise<Quality> {
  const shares = new Map(running.map((each) => [each, contexts.map((): Share[] => [])])); // [contexts][windows]
  const texts = new Map<Checkpoint, number[]>();
  progress.stage('bits per byte', running.length * windows.most);
  const count = await repeat(windows, async (index) => {
    const readings = readingsAt(partOf(index, windows.most), running, content, contexts, windows.most);
    for (const each of running) {
      const own = await sharesOf(each, readings.get(each.entry.checkpoint)!, signal); // [contexts]
      for (const [at, share] of own.entries()) shares.get(each)![at]!.push(share);
      progress.step(each.contender.id);
    }
    for (const [checkpoint, { ids }] of readings)
      texts.set(checkpoint, [...(texts.get(checkpoint) ?? []), ...ids.slice(1)]);
  });
  // Twice, since a single window without its begin token is shorter than itself.
  for (const [checkpoint, ids] of texts) texts.set(checkpoint, [...ids, ...ids]);
  const recalled = await measureRecall(running, texts, contexts, recall, progress, signal);
  const gaps = [...texts.keys()]
    .filter(({ recallFormat }) => !recallFormat)
    .map(({ name }) => `recall of ${name}: there is no recall.json beside it`);
  return { ...estimates(shares, contexts), recall: recalled, windows: count, gaps };
}

/** Every other part of the text first, so that fewer windows still come from all of it. */
function partOf(index: number, count: number): number {
  return 2 * index < count ? 2 * index : 2 * index - (count - 1 + (count % 2));
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

/** One window in the ids of every checkpoint. */
function readingsAt(
  index: number,
  running: readonly Running[],
  text: string,
  contexts: readonly number[],
  count: number,
): ReadonlyMap<Checkpoint, Reading> {
  const tokenizers = new Map(running.map(({ entry, model }) => [entry.checkpoint, model.tokenizer]));
  const window = windowAt(index, text, [...tokenizers.values()], contexts, count);
  return new Map(
    [...tokenizers].map(([checkpoint, tokenizer]) => {
      const ids = tokenizer.encode(window.text);
      return [checkpoint, { ids, prefixes: prefixesOf(tokenizer, ids, window) }];
    }),
  );
}
