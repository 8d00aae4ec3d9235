import type { Tokenizer } from '@dsla/runtime';
import type { Checkpoint } from '../checkpoint.js';
import { tokenBits } from '../measure/bits.js';
import { ratioDifference, ratioEstimate, type Share } from '../measure/statistics.js';
import type { Text } from '../measure/text.js';
import type { Report } from '../report/report.js';
import type { Progress } from '../ui/progress.js';
import type { Running } from './load.js';
import { type Prefix, prefixesOf, windowsOf } from './windows.js';

export interface BitsProtocol {
  /** Ascending, in tokens. */
  readonly contexts: readonly number[];
  readonly windows: number;
}

/** A window in the ids of one checkpoint. */
interface Reading {
  readonly ids: readonly number[];
  /** One a context. */
  readonly prefixes: readonly Prefix[];
}

/** Bits per byte of every contender on the same windows, and what each costs above the softmax model. */
export async function measureBits(
  running: readonly Running[],
  { content }: Text,
  { contexts, windows }: BitsProtocol,
  progress: Progress,
  signal: AbortSignal,
): Promise<Pick<Report, 'bitsPerByte' | 'excess'>> {
  const readings = readingsOf(running, content, contexts, windows);
  progress.stage('quality', running.length * windows);
  const bitsPerByte: Report['bitsPerByte'] = [];
  const excess: Report['excess'] = [];
  let softmax: Share[][] | undefined;
  for (const { entry, contender, model } of running) {
    const shares: Share[][] = contexts.map(() => []); // [contexts][windows]
    for (const { ids, prefixes } of readings.get(entry.checkpoint)!) {
      const costs = await tokenBits(model, ids, signal);
      for (const [at, { tokens, bytes }] of prefixes.entries())
        shares[at]!.push({ amount: sum(costs.subarray(0, tokens)), of: bytes });
      progress.step(contender.id);
    }
    for (const [at, length] of contexts.entries()) {
      bitsPerByte.push({ contender: contender.id, length, estimate: ratioEstimate(shares[at]!) });
      if (softmax)
        excess.push({ contender: contender.id, length, estimate: ratioDifference(softmax[at]!, shares[at]!) });
    }
    softmax ??= shares;
  }
  return { bitsPerByte, excess };
}

function readingsOf(
  running: readonly Running[],
  text: string,
  contexts: readonly number[],
  count: number,
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

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}
