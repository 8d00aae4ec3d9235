import { type Draw, DslaError } from '@dsla/spec';
import { uniformFloat64 } from 'pure-rand/distribution/uniformFloat64';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import { z } from 'zod';
import { checkOptions } from './options.js';

/** Greedy unless `temperature` says otherwise. Applied in the order of Hugging Face: penalty, temperature, top-k, top-p. */
export interface SamplingOptions {
  /** Divides the logits; 0 (the default) takes the most likely token. */
  readonly temperature?: number | undefined;
  /** Only the k most likely tokens (and those equal to the last of them). */
  readonly topK?: number | undefined;
  /** Only the smallest set of most likely tokens whose probability reaches p (and those equal to the last); at least one. */
  readonly topP?: number | undefined;
  /** Logits of tokens seen before are divided by it where positive, multiplied where negative (CTRL, arXiv 1909.05858). */
  readonly repetitionPenalty?: number | undefined;
  /** Integer; the same seed draws the same tokens. Left out: another one each time. */
  readonly seed?: number | undefined;
}

export const samplingShape: Readonly<Record<keyof SamplingOptions, z.ZodType<number | undefined>>> = {
  temperature: z.number().nonnegative().optional(),
  topK: z.int().positive().optional(),
  topP: z.number().positive().max(1).optional(),
  repetitionPenalty: z.number().positive().optional(),
  seed: z.int().optional(),
};

/** Draws the id of the next token. `history`: the ids before it, for the repetition penalty. */
export type Sampler = (logits: Float32Array, history: readonly number[]) => number;

/** @throws DslaError E_INPUT that lists every option out of range; the sampler: E_INTERNAL when a logit is NaN. */
export function createSampler(options: SamplingOptions = {}): Sampler {
  const next = createDraws(options);
  return (logits, history) => {
    const id = drawToken(penalise(logits, history, options.repetitionPenalty), next());
    if (id < 0) throw notNumbers('sampler', `logit ${logits.findIndex(Number.isNaN)}`);
    return id;
  };
}

/** The draws of one token after the other, without the penalty. @throws DslaError E_INPUT that lists every option out of range */
export function createDraws(options: SamplingOptions = {}): () => Draw {
  const { temperature = 0, topK, topP, seed } = checkOptions(z.object(samplingShape), options, 'sampling options');
  const random = xoroshiro128plus(seed ?? Math.floor(Math.random() * 2 ** 31));
  return () => ({ temperature, topK, topP, uniform: temperature === 0 ? 0 : uniformFloat64(random) });
}

/** The token of a draw; -1 where a logit is not a number. */
export function drawToken(logits: Float32Array, { temperature, topK, topP, uniform }: Draw): number {
  if (logits.some(Number.isNaN)) return -1;
  if (temperature === 0) return argmax(logits);
  const { ids, probabilities } = distribution(logits, [], { temperature, topK, topP });
  let mass = 0;
  for (let index = 0; index < ids.length; index++) {
    mass += probabilities[index]!;
    if (uniform < mass) return ids[index]!;
  }
  return ids.at(-1)!; // rounding left the sum a little below 1
}

/** What a token is drawn from, by id. The probabilities sum to 1. */
export interface Distribution {
  readonly ids: Int32Array;
  readonly probabilities: Float64Array;
}

/** The filtered distribution over the next token. `temperature` must be above 0. */
export function distribution(
  logits: Float32Array,
  history: readonly number[],
  { temperature = 1, topK, topP = 1, repetitionPenalty }: SamplingOptions,
): Distribution {
  const scores = Float64Array.from(penalise(logits, history, repetitionPenalty), (logit) => logit / temperature);
  const every = Int32Array.from(scores, (_, id) => id);
  const least = topK === undefined || topK >= scores.length ? Number.NEGATIVE_INFINITY : largest(scores, topK);
  const filtered = softmax(
    scores,
    every.filter((id) => scores[id]! >= least),
  );
  return topP === 1 ? filtered : nucleus(filtered, topP);
}

/** Top-p (arXiv 1904.09751): the most likely tokens whose mass reaches p, and those equal to the last of them. */
function nucleus({ ids, probabilities }: Distribution, topP: number): Distribution {
  // Tokens below (1 - p) / n have less than 1 - p together, so none of them is in the nucleus: they need no sorting.
  const floor = (1 - topP) / ids.length;
  const sorted = probabilities.filter((probability) => probability >= floor).sort();
  let mass = 0;
  let at = sorted.length;
  while (at > 0 && mass < topP) mass += sorted[--at]!;
  const kept = Int32Array.from(ids.keys()).filter((index) => probabilities[index]! >= sorted[at]!);
  const total = kept.reduce((sum, index) => sum + probabilities[index]!, 0);
  return {
    ids: kept.map((index) => ids[index]!),
    probabilities: Float64Array.from(kept, (index) => probabilities[index]! / total),
  };
}

/** Index of the largest value, the first of equals. */
export function argmax(values: Float32Array): number {
  let best = 0;
  for (let index = 1; index < values.length; index++) if (values[index]! > values[best]!) best = index;
  return best;
}

/** The error for logits that no token can be drawn from. */
export function notNumbers(where: string, which: string): DslaError {
  return new DslaError('E_INTERNAL', {
    where,
    rule: 'logits must be numbers',
    got: `NaN in ${which}`,
    cure: 'Check the weights for NaN and infinity; on a device that computes in f16, try f32.',
  });
}

function penalise(logits: Float32Array, history: readonly number[], penalty = 1): Float32Array {
  if (penalty === 1) return logits;
  const changed = logits.slice();
  for (const id of new Set(history)) {
    const logit = logits[id]!;
    changed[id] = logit < 0 ? logit * penalty : logit / penalty;
  }
  return changed;
}

/** The k-th largest value, by quickselect: sorting a vocabulary takes longer than a step of a small model. */
function largest(values: Float64Array, k: number): number {
  const pool = values.slice();
  const target = pool.length - k;
  let low = 0;
  let high = pool.length - 1;
  while (low < high) {
    const pivot = pool[(low + high) >> 1]!;
    let left = low;
    let right = high;
    while (left <= right) {
      while (pool[left]! < pivot) left++;
      while (pool[right]! > pivot) right--;
      if (left > right) break;
      [pool[left], pool[right]] = [pool[right]!, pool[left]!];
      left++;
      right--;
    }
    if (target <= right) high = right;
    else if (target >= left) low = left;
    else break;
  }
  return pool[target]!;
}

function softmax(scores: Float64Array, ids: Int32Array): Distribution {
  const most = ids.reduce((max, id) => Math.max(max, scores[id]!), Number.NEGATIVE_INFINITY);
  const weights = Float64Array.from(ids, (id) => Math.exp(scores[id]! - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return { ids, probabilities: weights.map((weight) => weight / total) };
}
