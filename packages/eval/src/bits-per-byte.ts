import { createDetokenizer, type TextModel, type Tokenizer } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import { type EvalOptions, logProbabilities } from './score.js';
import { ratio, type Summary } from './summary.js';

/**
 * Stretches of so many characters, encoded one by one behind a begin token. The first token of a stretch is given, with its
 * bytes: it holds the space that tokenizers put before a text, which is not in the text.
 */
export interface CharacterWindows {
  readonly characters: number;
  /**
   * 'single': empty lines are left out before the text is encoded, for models that were trained without them. The bytes are
   * those of the text as it is.
   */
  readonly lineBreaks?: 'single' | undefined;
}

/** The text is encoded once and cut into windows of so many tokens, the begin token in front of each included. */
export interface TokenWindows {
  readonly tokens: number;
}

export interface BitsOptions extends EvalOptions {
  readonly window: CharacterWindows | TokenWindows;
  /** Only the first so many windows; all full ones unless said. */
  readonly windows?: number | undefined;
}

/** Bits per byte, and the sums behind it. `n` counts windows. */
export interface BitsPerByte extends Summary {
  readonly bits: number;
  /** UTF-8 bytes that the scored tokens spell out. */
  readonly bytes: number;
  /** Tokens that were scored. */
  readonly tokens: number;
  /** exp of the mean negative log-likelihood of a token: only comparable between models with one tokenizer. */
  readonly perplexity: number;
}

interface Window {
  readonly ids: readonly number[];
  /** First scored token. */
  readonly from: number;
  readonly bytes: number;
}

/**
 * Bits that a model needs for every UTF-8 byte of a text: sum of -log2 p over the scored tokens / sum of their bytes.
 * @throws DslaError E_INPUT: a text or window that is too short or too long; E_ABORTED
 */
export async function bitsPerByte(model: TextModel, text: string, options: BitsOptions): Promise<BitsPerByte> {
  const windows = windowsOf(model.tokenizer, text, options);
  const scores = await logProbabilities(model, windows, options);
  const shares = scores.map((score, index) => ({ amount: -sum(score) / Math.LN2, of: windows[index]!.bytes }));
  const bits = shares.reduce((total, { amount }) => total + amount, 0);
  const tokens = scores.reduce((total, { length }) => total + length, 0);
  return {
    ...ratio(shares, protocolOf(options, windows.length)),
    bits,
    bytes: shares.reduce((total, { of }) => total + of, 0),
    tokens,
    perplexity: 2 ** (bits / tokens),
  };
}

/** The full windows of a text as they are scored. @throws DslaError E_INPUT when there is none */
export function windowsOf(
  tokenizer: Tokenizer,
  text: string,
  { window, windows: most = Number.POSITIVE_INFINITY }: Pick<BitsOptions, 'window' | 'windows'>,
): Window[] {
  const [size, unit] = 'tokens' in window ? [window.tokens, 'tokens'] : [window.characters, 'characters'];
  if (!Number.isInteger(size) || size < 2) fail(`a window must have at least 2 ${unit}`, size, 'Use a larger window.');
  const found =
    'tokens' in window ? tokenWindows(tokenizer, text, size, most) : characterWindows(tokenizer, text, window, most);
  if (found.length > 0) return found;
  return fail(`the text must fill a window of ${size} ${unit}`, `${text.length} characters`, 'Use a longer text.');
}

function characterWindows(
  tokenizer: Tokenizer,
  text: string,
  { characters, lineBreaks }: CharacterWindows,
  most: number,
): Window[] {
  const count = Math.min(most, Math.floor(text.length / characters));
  return Array.from({ length: count }, (_, index) => {
    const part = text.slice(index * characters, (index + 1) * characters);
    const ids = tokenizer.encode(lineBreaks ? part.replace(/\n{2,}/g, '\n') : part, { bos: true });
    const from = start(tokenizer).length + 1;
    return { ids, from, bytes: Buffer.byteLength(part) - Buffer.byteLength(tokenizer.decode(ids.slice(0, from))) };
  });
}

function tokenWindows(tokenizer: Tokenizer, text: string, size: number, most: number): Window[] {
  const begin = start(tokenizer);
  const width = size - begin.length;
  const ids = encodeEnough(tokenizer, text, most * width);
  const count = Math.min(most, Math.floor(ids.length / width));
  const spelled = createDetokenizer(tokenizer);
  return Array.from({ length: count }, (_, index) => {
    const own = ids.slice(index * width, (index + 1) * width);
    const bytes = own.map((id) => Buffer.byteLength(spelled.push(id))).slice(1 - begin.length);
    return { ids: [...begin, ...own], from: 1, bytes: bytes.reduce((total, count) => total + count, 0) };
  });
}

/** At least `wanted` ids where the text has them; a cut in the text changes only tokens near it, which are dropped. */
function encodeEnough(tokenizer: Tokenizer, text: string, wanted: number): number[] {
  const margin = 64;
  for (
    let characters = Math.min(8 * (wanted + margin), text.length);
    ;
    characters = Math.min(2 * characters, text.length)
  ) {
    const ids = tokenizer.encode(text.slice(0, characters), { bos: false });
    if (characters === text.length) return ids;
    if (ids.length >= wanted + margin) return ids.slice(0, wanted);
  }
}

const start = ({ bos }: Tokenizer): number[] => (bos === undefined ? [] : [bos]);

function protocolOf({ window }: BitsOptions, count: number): string {
  const cut =
    'tokens' in window
      ? `the first ${count} windows of ${window.tokens} tokens, the begin token in front of each included`
      : `the first ${count} windows of ${window.characters} characters, each encoded behind a begin token, its first token given${
          window.lineBreaks ? ', empty lines left out before encoding but counted as bytes' : ''
        }`;
  return `${cut}; bits of all other tokens / their UTF-8 bytes; error over windows`;
}

const sum = (values: Float64Array): number => values.reduce((total, value) => total + value, 0);

function fail(rule: string, got: unknown, cure: string): never {
  throw new DslaError('E_INPUT', { where: 'bits per byte', rule, got, cure });
}
