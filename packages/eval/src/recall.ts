import { argmax, type Model, type RunInput } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import { z } from 'zod';
import { type EvalOptions, withSequences } from './score.js';
import { proportion, type Summary } from './summary.js';

/**
 * Recall passages as the small checkpoints were trained on them (tools/pretrain/data.py). A pair is two random ordinary tokens,
 * the key, and two more, the value. It is planted over six tokens of text as  <key> k1 k2 <value> v1 v2  and asked for later as
 * <query> k1 k2 <value> v1 v2 . Behind the begin token a window has slots of 16 tokens; a plant starts a slot, a question stands
 * in its middle, so that distances (from <key> to <query>) are 16 d + 8.
 */
export interface RecallFormat {
  readonly special: {
    readonly '<s>': number;
    readonly '<key>': number;
    readonly '<value>': number;
    readonly '<query>': number;
  };
  /** Ids to draw keys and values from, both included. */
  readonly ordinaryTokens: { readonly from: number; readonly to: number };
}

const slot = 16;
const half = 8;
const span = 6;

const id = z.int().nonnegative();
const plant = (mark: string): z.ZodType<readonly string[]> => {
  const layout = [mark, 'k1', 'k2', '<value>', 'v1', 'v2'].join(' ');
  return z.array(z.string()).refine((names) => names.join(' ') === layout, `must be ${layout}`);
};
const schema: z.ZodType<RecallFormat> = z.looseObject({
  special: z.looseObject({ '<s>': id, '<key>': id, '<value>': id, '<query>': id }),
  ordinaryTokens: z.looseObject({ from: id, to: id }).refine(({ from, to }) => from < to, 'from must be below to'),
  plant: plant('<key>'),
  question: plant('<query>'),
});

/** Checks the content of a `recall.json`. @throws DslaError E_FORMAT with every problem */
export function parseRecallFormat(json: unknown): RecallFormat {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new DslaError('E_FORMAT', {
    where: 'recall.json',
    rule: parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'file'}: ${message}`).join('; '),
    cure: 'It comes with checkpoints that were trained on recall passages.',
  });
}

export interface RecallOptions extends EvalOptions {
  readonly format: RecallFormat;
  /** Tokens of a window; the context of the model unless said. */
  readonly length?: number | undefined;
  /** Distances in tokens, from (inclusive) to (exclusive). */
  readonly buckets: readonly (readonly [from: number, to: number])[];
  /** Windows a bucket; 8 unless said. */
  readonly windows?: number | undefined;
  /** Pairs a window, of which those that would stand in a taken slot are dropped; 8 unless said. */
  readonly pairs?: number | undefined;
  /** Integer; the same seed asks the same questions. 0 unless said. */
  readonly seed?: number | undefined;
}

export interface RecallBucket extends Summary {
  readonly from: number;
  readonly to: number;
}

/** A window with its questions, in order of place. */
export interface RecallWindow {
  readonly ids: Int32Array;
  readonly questions: readonly Question[];
}

interface Question {
  /** Position of v1 in the question; v2 follows. */
  readonly at: number;
  readonly distance: number;
}

/**
 * Share of planted pairs that a model recalls, by distance: right is a question of which both value tokens are the most likely
 * ones, the second given the first. `text`: ids of ordinary text, at least a window long, between which the pairs stand.
 * @throws DslaError E_INPUT: a text, a length or a bucket that does not fit; E_ABORTED
 */
export async function recall(model: Model, text: readonly number[], options: RecallOptions): Promise<RecallBucket[]> {
  const { buckets, windows = 8, length = model.context, plan, signal, onProgress, batch = model.slots } = options;
  const results: RecallBucket[] = [];
  for (const [index, [from, to]] of buckets.entries()) {
    const drawn = recallWindows(text, { ...options, length, windows, from, to, seed: (options.seed ?? 0) + index });
    const hits: boolean[] = [];
    for (let start = 0; start < drawn.length; start += batch) {
      const group = drawn.slice(start, start + batch);
      hits.push(...(await withSequences(model, group.length, plan, (open) => ask(model, group, open, signal))));
      onProgress?.(index * windows + start + group.length, buckets.length * windows);
    }
    const protocol = `${windows} windows of ${length} tokens with up to ${options.pairs ?? 8} pairs; both tokens the most likely, the second given the first`;
    results.push({ from, to, ...proportion(hits.filter(Boolean).length, hits.length, protocol) });
  }
  return results;
}

interface Draw extends Pick<RecallOptions, 'format' | 'pairs'> {
  readonly length: number;
  readonly windows: number;
  readonly from: number;
  readonly to: number;
  readonly seed: number;
}

/** The windows of one bucket, drawn from the seed. @throws DslaError E_INPUT */
export function recallWindows(text: readonly number[], draw: Draw): RecallWindow[] {
  const { format, length, windows, from, to, pairs = 8, seed } = draw;
  const slots = Math.floor((length - 1) / slot);
  const [nearest, farthest] = [Math.max(0, Math.ceil((from - half) / slot)), Math.ceil((to - half) / slot) - 1];
  if (!(nearest <= farthest && farthest < slots)) {
    const most = slot * (slots - 1) + half;
    fail(`distances are ${half}, ${half + slot}, ... ${most} in windows of ${length} tokens`, `${from}..${to}`);
  }
  if (text.length < length) fail(`the text must have at least ${length} tokens`, text.length);
  const random = xoroshiro128plus(seed);
  const pick = (low: number, high: number): number => uniformInt(random, low, high);
  const { special, ordinaryTokens } = format;
  return Array.from({ length: windows }, () => {
    const start = pick(0, text.length - length);
    const ids = Int32Array.from(text.slice(start, start + length));
    ids[0] = special['<s>'];
    const questions: Question[] = [];
    const planted = new Set<number>();
    const asked = new Set<number>();
    for (let pair = 0; pair < pairs; pair++) {
      const apart = pick(nearest, farthest);
      const place = pick(0, slots - 1 - apart);
      const body = Array.from({ length: 4 }, () => pick(ordinaryTokens.from, ordinaryTokens.to));
      if (planted.has(place) || asked.has(place + apart)) continue;
      planted.add(place);
      asked.add(place + apart);
      const write = (at: number, mark: number) =>
        ids.set([mark, body[0]!, body[1]!, special['<value>'], body[2]!, body[3]!], at);
      const query = 1 + (place + apart) * slot + half;
      write(1 + place * slot, special['<key>']);
      write(query, special['<query>']);
      questions.push({ at: query + span - 2, distance: apart * slot + half });
    }
    return { ids, questions: questions.sort((a, b) => a.at - b.at) };
  });
}

/** Reads every window up to each of its questions in turn, all windows as one batch. */
async function ask(
  model: Model,
  windows: readonly RecallWindow[],
  sequences: readonly RunInput['sequence'][],
  signal: AbortSignal | undefined,
): Promise<boolean[]> {
  const hits: boolean[] = [];
  const most = Math.max(...windows.map(({ questions }) => questions.length));
  for (let question = 0; question < most; question++) {
    const active = [...windows.keys()].filter((index) => windows[index]!.questions.length > question);
    const answer = async (offset: number): Promise<boolean[]> => {
      const inputs = active.map((index): RunInput => {
        const { ids, questions } = windows[index]!;
        const sequence = sequences[index]!;
        return { sequence, ids: ids.subarray(sequence.past, questions[question]!.at + offset) };
      });
      const logits = await model.run(inputs, { signal });
      return active.map((index, row) => {
        const { ids, questions } = windows[index]!;
        return argmax(logits[row]!) === ids[questions[question]!.at + offset];
      });
    };
    const first = await answer(0);
    const second = await answer(1);
    hits.push(...first.map((hit, row) => hit && second[row]!));
  }
  return hits;
}

function fail(rule: string, got: unknown): never {
  throw new DslaError('E_INPUT', { where: 'recall', rule, got, cure: 'Change the buckets, the length or the text.' });
}
