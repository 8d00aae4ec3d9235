import { DslaError } from '@dsla/spec';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { z } from 'zod';

/** Text to token ids and back, as the checkpoint's `tokenizer.json` says. */
export interface Tokenizer {
  /** One more than the largest id. */
  readonly size: number;
  /** Id that begins a sequence, where the checkpoint names one. */
  readonly bos: number | undefined;
  /** Id that ends a sequence, where the tokenizer's configuration names one; see also `TextModel.eos`. */
  readonly eos: number | undefined;
  /** Whether `encode` puts `bos` in front unless told otherwise. */
  readonly addsBos: boolean;
  /**
   * `bos` overrides `addsBos`; a text that already begins with the begin token gets no second one. An end token, which some
   * post-processors append, is never added. Special tokens written out in the text become their ids.
   */
  encode(text: string, options?: { readonly bos?: boolean }): number[];
  /**
   * Special tokens and ids outside the vocabulary are left out, spaces are kept as they are (`clean_up_tokenization_spaces`
   * is ignored: it is not reversible), bytes that are no UTF-8 become U+FFFD.
   */
  decode(ids: readonly number[]): string;
  /** Id of a token by its exact content, e.g. `<s>`. */
  id(token: string): number | undefined;
  /** Whether an id is a special token: it has no text. */
  isSpecial(id: number): boolean;
}

const tokenName = z.union([z.string(), z.object({ content: z.string() }).transform(({ content }) => content)]);
const configSchema = z.looseObject({
  add_bos_token: z.boolean().nullish(),
  bos_token: tokenName.nullish(),
  eos_token: tokenName.nullish(),
});
const fileSchema = z.looseObject({
  model: z.looseObject({
    type: z.literal('BPE').optional(),
    // Hundreds of thousands of entries: checked by hand, since zod takes a second for them.
    vocab: z.custom<Record<string, number>>(isVocabulary, 'must map every token to its id, an integer of at least 0'),
    merges: z.custom<readonly unknown[]>(isMerges, 'must be a list of pairs of tokens, or of "left right" strings'),
  }),
  added_tokens: z
    .array(z.looseObject({ id: z.int().nonnegative(), content: z.string(), special: z.boolean().optional() }))
    .nullish(),
});

export interface TokenizerFiles {
  /** Content of `tokenizer.json`. */
  readonly tokenizer: unknown;
  /** Content of `tokenizer_config.json`, if there is one. */
  readonly config?: unknown;
  /** Named in errors. */
  readonly where: string;
}

/** @throws DslaError E_FORMAT with every problem found in the files; E_UNSUPPORTED for a model other than BPE. */
export function createTokenizer({ tokenizer, config = {}, where }: TokenizerFiles): Tokenizer {
  const kind = (tokenizer as { model?: { type?: unknown } } | null)?.model?.type;
  if (typeof kind === 'string' && kind !== 'BPE') {
    throw new DslaError('E_UNSUPPORTED', {
      where,
      rule: 'the model of tokenizer.json must be BPE',
      got: kind,
      cure: 'Llama and Zamba checkpoints come with a BPE tokenizer.json.',
    });
  }
  const file = check(fileSchema, tokenizer, where);
  const settings = check(configSchema, config, `${where} (tokenizer_config.json)`);
  const inner = open(file, settings, where);

  const added = file.added_tokens ?? [];
  const specials = new Set(added.filter(({ special }) => special === true).map(({ id }) => id));
  const ids = [...Object.values(file.model.vocab), ...added.map(({ id }) => id)];
  const size = 1 + ids.reduce((most, id) => Math.max(most, id), -1);
  const idOf = (token: string | null | undefined) =>
    token === null || token === undefined ? undefined : inner.token_to_id(token);
  const bos = idOf(settings.bos_token);
  const bare = (text: string): number[] => inner.encode(text, { add_special_tokens: false }).ids;
  const addsBos =
    bos !== undefined && (settings.add_bos_token ?? inner.encode('a', { add_special_tokens: true }).ids[0] === bos);

  return {
    size,
    bos,
    eos: idOf(settings.eos_token),
    addsBos,
    encode(text, options) {
      const ids = text === '' ? [] : bare(text);
      return (options?.bos ?? addsBos) && bos !== undefined && ids[0] !== bos ? [bos, ...ids] : ids;
    },
    decode(ids) {
      const known = ids.filter((id) => !specials.has(id) && inner.id_to_token(id) !== undefined);
      return known.length === 0 ? '' : inner.decode(known, { clean_up_tokenization_spaces: false });
    },
    id: (token) => inner.token_to_id(token),
    isSpecial: (id) => specials.has(id),
  };
}

function isVocabulary(value: unknown): boolean {
  return isObject(value) && Object.values(value).every((id) => Number.isInteger(id) && (id as number) >= 0);
}

function isMerges(value: unknown): boolean {
  const isPair = (merge: unknown) => Array.isArray(merge) && merge.length === 2 && merge.every(isString);
  return Array.isArray(value) && value.every((merge) => isString(merge) || isPair(merge));
}

const isObject = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isString = (value: unknown): value is string => typeof value === 'string';

function open(file: object, settings: object, where: string): HuggingFaceTokenizer {
  try {
    // The library iterates over added_tokens and wants every part present, if only as null.
    const parts = { added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null };
    return new HuggingFaceTokenizer({ ...parts, ...file }, settings);
  } catch (cause) {
    throw new DslaError('E_FORMAT', {
      where,
      rule: `tokenizer.json must describe a tokenizer that @huggingface/tokenizers can build: ${cause instanceof Error ? cause.message : cause}`,
      cure: 'Download the file again, or save it anew with transformers (save_pretrained).',
      cause,
    });
  }
}

function check<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new DslaError('E_FORMAT', {
    where,
    rule: parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'file'}: ${message}`).join('; '),
    cure: 'Download the file again, or save it anew with transformers (save_pretrained).',
  });
}
