import type { Tokenizer } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';

/** A stretch of text that every contender reads from its first character on, begin token in front. */
export interface Window {
  readonly text: string;
  /** Leading characters that are scored at each context; no tokenizer needs more tokens for them than the context has. */
  readonly characters: readonly number[];
}

/**
 * Window `index` of `count` that are spread evenly over the text, each beginning with a paragraph. The shorter contexts are
 * beginnings of the longest one, so one pass of a causal model scores them all.
 * @throws DslaError E_INPUT when the text is too short for so many
 */
export function windowAt(
  index: number,
  text: string,
  tokenizers: readonly Tokenizer[],
  contexts: readonly number[],
  count: number,
): Window {
  const start = paragraphAt(text, Math.floor((index * text.length) / count));
  const rest = text.slice(start, Math.floor(((index + 1) * text.length) / count));
  const fits = tokenizers.map((tokenizer) => fitting(tokenizer, rest, contexts));
  const characters = contexts.map((_, at) => Math.min(...fits.map((lengths) => lengths[at]!)));
  if (characters.at(-1)! < rest.length) return { text: rest.slice(0, characters.at(-1)!), characters };
  throw new DslaError('E_INPUT', {
    where: '--text',
    rule: `must hold ${count} windows of ${contexts.at(-1)} tokens, got ${text.length} characters`,
    cure: 'Use a longer text, fewer --windows or shorter --lengths.',
  });
}

/** Part of a window in the tokens of one tokenizer. */
export interface Prefix {
  readonly tokens: number;
  /** Of UTF-8 text that these tokens spell out after the first one, which nothing precedes: a begin token has none. */
  readonly bytes: number;
}

/** What each context scores of a window: as few tokens as spell out its characters. */
export function prefixesOf(tokenizer: Tokenizer, ids: readonly number[], { text, characters }: Window): Prefix[] {
  const bytesOf = (count: number) => Buffer.byteLength(text.slice(0, spelled(tokenizer, ids.slice(0, count))));
  return characters.map((wanted) => {
    let [low, high] = [0, ids.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spelled(tokenizer, ids.slice(0, middle)) >= wanted) high = middle;
      else low = middle + 1;
    }
    return { tokens: low, bytes: bytesOf(low) - bytesOf(1) };
  });
}

// Characters of the text that fit each context; text.length where it ends before.
function fitting(tokenizer: Tokenizer, text: string, contexts: readonly number[]): number[] {
  const longest = contexts.at(-1)!;
  let taken = 5 * longest;
  let ids = tokenizer.encode(text.slice(0, taken));
  while (ids.length <= longest && taken < text.length) {
    taken *= 2;
    ids = tokenizer.encode(text.slice(0, taken));
  }
  return contexts.map((context) => (ids.length <= context ? text.length : spelled(tokenizer, ids.slice(0, context))));
}

/** Characters that the ids spell out; an incomplete one at the end does not count. */
function spelled(tokenizer: Tokenizer, ids: readonly number[]): number {
  return tokenizer.decode(ids).replace(/\uFFFD+$/, '').length;
}

function paragraphAt(text: string, from: number): number {
  const next = from === 0 ? -1 : text.indexOf('\n\n', from);
  return next === -1 ? from : next + 2;
}
