import type { Model, Sequence } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';

/** What every measurement takes. */
export interface EvalOptions {
  /** Mixers to use; the model's own (or the one plan it was loaded for) unless said. */
  readonly plan?: readonly string[] | undefined;
  /** Sequences run as one batch; all slots of the model unless said. */
  readonly batch?: number | undefined;
  /** Most logits on the host at once; 2^24 (64 MiB) unless said. */
  readonly logitsAtOnce?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** A sequence of which the tokens from `from` (at least 1) on are scored. */
export interface ScoreRequest {
  readonly ids: readonly number[];
  readonly from: number;
}

/**
 * Natural-log probabilities of the scored tokens, each given all before it: [ids.length - from] a request. The softmax is
 * taken in float64. The last token of a request is never run, so a request may be one longer than the context.
 * @throws DslaError E_INPUT for a request that does not fit, E_ABORTED
 */
export async function logProbabilities(
  model: Model,
  requests: readonly ScoreRequest[],
  options: EvalOptions = {},
): Promise<Float64Array[]> {
  for (const { ids, from } of requests) checkRequest(model, ids.length, from);
  const batch = options.batch ?? model.slots;
  const results: Float64Array[] = [];
  for (let start = 0; start < requests.length; start += batch) {
    results.push(...(await scoreBatch(model, requests.slice(start, start + batch), options)));
    options.onProgress?.(results.length, requests.length);
  }
  return results;
}

/** Opens sequences for a batch, and closes them whatever happens. */
export async function withSequences<T>(
  model: Model,
  count: number,
  plan: EvalOptions['plan'],
  task: (sequences: readonly Sequence[]) => Promise<T>,
): Promise<T> {
  const sequences: Sequence[] = [];
  try {
    while (sequences.length < count) sequences.push(model.open(plan));
    return await task(sequences);
  } finally {
    for (const sequence of sequences) sequence[Symbol.dispose]();
  }
}

async function scoreBatch(
  model: Model,
  requests: readonly ScoreRequest[],
  { plan, signal, logitsAtOnce = 2 ** 24 }: EvalOptions,
): Promise<Float64Array[]> {
  const { vocabulary } = model.description;
  const piece = Math.max(1, Math.floor(logitsAtOnce / (vocabulary * requests.length)));
  return await withSequences(model, requests.length, plan, async (sequences) => {
    const before = requests.flatMap(({ ids, from }, index) =>
      from > 1 ? [{ sequence: sequences[index]!, ids: ids.slice(0, from - 1) }] : [],
    );
    if (before.length > 0) await model.run(before, { logits: 'none', signal });
    const results = requests.map(({ ids, from }) => new Float64Array(ids.length - from));
    const longest = Math.max(...results.map(({ length }) => length));
    for (let at = 0; at < longest; at += piece) {
      const active = [...requests.keys()].filter((index) => results[index]!.length > at);
      const inputs = active.map((index) => {
        const { ids, from } = requests[index]!;
        const end = Math.min(from - 1 + at + piece, ids.length - 1);
        return { sequence: sequences[index]!, ids: ids.slice(from - 1 + at, end) };
      });
      const logits = await model.run(inputs, { logits: 'all', signal });
      for (const [row, index] of active.entries()) {
        const { ids, from } = requests[index]!;
        for (let token = 0; token < inputs[row]!.ids.length; token++) {
          const own = logits[row]!.subarray(token * vocabulary, (token + 1) * vocabulary);
          results[index]![at + token] = logProbability(own, ids[from + at + token]!);
        }
      }
    }
    return results;
  });
}

/** log softmax(logits)[id] */
function logProbability(logits: Float32Array, id: number): number {
  let most = Number.NEGATIVE_INFINITY;
  for (const logit of logits) if (logit > most) most = logit;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - most);
  return logits[id]! - most - Math.log(sum);
}

function checkRequest({ context }: Model, length: number, from: number): void {
  const where = 'scoring';
  if (!(Number.isInteger(from) && from >= 1 && from < length)) {
    throw new DslaError('E_INPUT', { where, rule: `the first scored token must be in 1..${length - 1}`, got: from });
  }
  if (length - 1 > context) {
    throw new DslaError('E_INPUT', {
      where,
      rule: `all tokens but the last must fit the context of ${context}`,
      got: `${length} tokens`,
      cure: 'Use shorter windows, or load the model with a larger context.',
    });
  }
}
