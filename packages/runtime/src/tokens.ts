import type { Drawn } from './draw.js';
import type { Model } from './model.js';
import { createDraws, createSampler, type SamplingOptions } from './sample.js';
import type { Sequence } from './slots.js';

/** Token after token of a sequence, without end. Each is run when the one after it is asked for. */
export type Tokens = AsyncGenerator<number, never, void>;

export interface TokenOptions extends SamplingOptions {
  /** Most tokens that will be asked for. */
  readonly maxTokens?: number | undefined;
  /** The sequence may end with one token more than were asked for: a device that draws then gets the next step early. */
  readonly ahead: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** `history`: all ids so far, of which none has been run; whoever takes a token adds it. */
export function tokensOf(model: Model, sequence: Sequence, history: readonly number[], options: TokenOptions): Tokens {
  const penalised = (options.repetitionPenalty ?? 1) !== 1; // looks at all tokens before, which the host knows
  return (penalised ? sampleTokens : drawTokens)(model, sequence, history, options);
}

/** Drawn on the device where it can. */
async function* drawTokens(
  model: Model,
  sequence: Sequence,
  history: readonly number[],
  options: TokenOptions,
): Tokens {
  const { ahead, maxTokens = Number.POSITIVE_INFINITY, signal } = options;
  const draws = createDraws(options);
  const last = history.length + maxTokens;
  const another = (): boolean => ahead && sequence.past < model.context && history.length + 1 < last;
  let drawn: Drawn = await model.draw([{ sequence, ids: history }], [draws()], signal);
  let after: Drawn | undefined;
  try {
    for (;;) {
      after = drawn.onDevice && another() ? await model.draw(drawn, [draws()], signal) : undefined;
      const ids: Int32Array = await drawn.ids;
      drawn[Symbol.dispose]();
      yield ids[0]!;
      drawn = after ?? (await model.draw([{ sequence, ids }], [draws()], signal));
    }
  } finally {
    drawn[Symbol.dispose]();
    after?.[Symbol.dispose]();
  }
}

/** Sampled from logits on the host. */
async function* sampleTokens(
  model: Model,
  sequence: Sequence,
  history: readonly number[],
  options: TokenOptions,
): Tokens {
  const { signal } = options;
  const sample = createSampler(options);
  for (let ids: readonly number[] = history; ; ids = history.slice(-1)) {
    const [logits] = await model.run([{ sequence, ids }], { signal });
    yield sample(logits!, history);
  }
}
