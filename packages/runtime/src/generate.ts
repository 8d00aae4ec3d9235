import type { Plan } from '@dsla/models';
import { DslaError, throwIfAborted } from '@dsla/spec';
import { z } from 'zod';
import { createDetokenizer, createStopScanner } from './detokenize.js';
import type { TextModel } from './load.js';
import { checkOptions } from './options.js';
import { type SamplingOptions, samplingShape } from './sample.js';
import type { Sequence } from './slots.js';
import { tokensOf } from './tokens.js';

export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate; as many as the context holds unless said. */
  readonly maxTokens?: number | undefined;
  /** Generation ends before the first of these texts; no part of it is given out. */
  readonly stop?: readonly string[] | undefined;
  /** Ids that end generation; the checkpoint's own unless said. */
  readonly eos?: readonly number[] | undefined;
  /** Plan of the sequence that is opened. */
  readonly plan?: Plan | undefined;
  /**
   * Continues this sequence instead of opening one: the prompt comes after its tokens, and it stays open. Between two
   * tokens it may be swapped. It holds all tokens but the last one generated.
   */
  readonly sequence?: Sequence | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What one token brought. */
export interface Generated {
  /** The token; none in the chunk that only brings text held back before. */
  readonly ids: readonly number[];
  /** Final text, to be put behind the prompt; empty while a character or a possible stop string is incomplete. */
  readonly text: string;
}

export interface Usage {
  readonly promptTokens: number;
  /** Without the end token. */
  readonly generatedTokens: number;
  /** Wall time until the first token. */
  readonly prefillMs: number;
  /** Wall time from the first token to the end, without the time the caller took. */
  readonly decodeMs: number;
  /** An end token, a stop string, maxTokens, or a full context. */
  readonly finish: 'eos' | 'stop' | 'length' | 'context';
}

const passed = z.unknown().optional(); // checked where it is used
const optionsSchema = z.strictObject({
  ...samplingShape,
  maxTokens: z.int().positive().optional(),
  stop: z.array(z.string().min(1)).optional(),
  eos: z.array(z.int().nonnegative()).optional(),
  plan: passed,
  sequence: passed,
  signal: passed,
});

/**
 * Generates text, token by token; the generator's return value is the usage. Leaving it early (`break`, an abort, an error)
 * closes the sequence it opened. A prompt must have at least one token: to begin with nothing, pass `[model.tokenizer.bos]`.
 * @throws DslaError E_INPUT: every problem of the options, empty prompt, prompt longer than the context, no free slot;
 * E_ABORTED
 */
export async function* generate(
  model: TextModel,
  prompt: string | readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<Generated, Usage, void> {
  const checked = checkOptions(optionsSchema, options, 'generate');
  const { maxTokens = Number.POSITIVE_INFINITY, stop = [], eos = model.eos } = checked;
  const ids = promptIds(model, prompt, options.sequence);
  throwIfAborted(options.signal, 'generate');
  const own = options.sequence ? undefined : model.open(options.plan);
  const sequence = options.sequence ?? own!;
  const start = sequence.past;
  const history = [...ids];
  const tokens = tokensOf(model, sequence, history, { ...options, ahead: own !== undefined });
  try {
    const text = createTextStream(model, ids, stop);
    const next = async (): Promise<{ id: number; ms: number }> => {
      const began = performance.now();
      const { value: id } = await tokens.next();
      return { id: id!, ms: performance.now() - began };
    };
    let token = await next();
    const prefillMs = token.ms;
    let decodeMs = 0;
    const usage = (finish: Usage['finish']): Usage => {
      return { promptTokens: ids.length, generatedTokens: history.length - ids.length, prefillMs, decodeMs, finish };
    };
    while (!eos.includes(token.id)) {
      history.push(token.id);
      const piece = text.push(token.id);
      let finish: Usage['finish'] | undefined;
      if (text.stopped) finish = 'stop';
      else if (history.length - ids.length >= maxTokens) finish = 'length';
      else if (start + history.length > model.context) finish = 'context';
      yield { ids: [token.id], text: finish ? piece + text.flush() : piece };
      if (finish) return usage(finish);
      token = await next();
      decodeMs += token.ms;
    }
    const rest = text.flush();
    if (rest !== '') yield { ids: [], text: rest };
    return usage('eos');
  } finally {
    await tokens.return(undefined as never);
    own?.[Symbol.dispose]();
  }
}

/** The whole of a generation at once. @throws what `generate` throws */
export async function complete(
  model: TextModel,
  prompt: string | readonly number[],
  options: GenerateOptions = {},
): Promise<{ readonly text: string; readonly ids: readonly number[]; readonly usage: Usage }> {
  const stream = generate(model, prompt, options);
  const ids: number[] = [];
  let text = '';
  for (;;) {
    const { done, value } = await stream.next();
    if (done) return { text, ids, usage: value };
    ids.push(...value.ids);
    text += value.text;
  }
}

/** @throws DslaError E_INPUT when there is nothing to start from */
function promptIds(
  { tokenizer }: TextModel,
  prompt: string | readonly number[],
  sequence?: Sequence,
): readonly number[] {
  // In the middle of a sequence there is nothing to begin.
  const ids = typeof prompt === 'string' ? tokenizer.encode(prompt, sequence?.past ? { bos: false } : {}) : prompt;
  if (prompt.length > 0 && ids.length > 0) return ids;
  throw new DslaError('E_INPUT', {
    where: 'generate',
    rule: 'the prompt must have at least one token',
    got: prompt,
    cure:
      tokenizer.bos === undefined ? 'Pass some text.' : `Pass some text, or [${tokenizer.bos}] to begin with nothing.`,
  });
}

/** Tokens after a prompt to final text, cut at the first stop string. */
function createTextStream(
  { tokenizer }: TextModel,
  prompt: readonly number[],
  stop: readonly string[],
): { readonly stopped: boolean; push(id: number): string; flush(): string } {
  const text = createDetokenizer(tokenizer, prompt);
  const scanner = createStopScanner(stop);
  return {
    get stopped() {
      return scanner.stopped;
    },
    push: (id) => scanner.push(text.push(id)),
    flush: () => scanner.push(text.flush()) + scanner.flush(),
  };
}
