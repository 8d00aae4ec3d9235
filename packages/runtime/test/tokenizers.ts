// Three small tokenizers of the kinds that Llama and Zamba checkpoints come with, written out by hand.

const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
const specials = ['<unk>', '<s>', '</s>'];
const added = (names: readonly string[], start = 0): object[] =>
  names.map((content, index) => ({ id: start + index, content, special: true, normalized: false }));
const vocabulary = (tokens: readonly string[]): Record<string, number> =>
  Object.fromEntries(tokens.map((token, id) => [token, id]));

const letters = [
  ...'▁abcdehlortuw.,!\n',
  '▁▁',
  'he',
  'll',
  '▁he',
  'hell',
  '▁hell',
  '▁hello',
  'o▁',
  '▁w',
  'or',
  '▁wor',
  '�',
];
const merges = ['▁ ▁', 'h e', 'l l', '▁ he', 'he ll', '▁he ll', '▁hell o', 'o ▁', '▁ w', 'o r', '▁w or'];
const piece = (normalizer: object | null, preTokenizer: object | null, decoder: object): object => ({
  version: '1.0',
  added_tokens: added(specials),
  normalizer,
  pre_tokenizer: preTokenizer,
  post_processor: {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
    special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
  },
  decoder,
  model: {
    type: 'BPE',
    unk_token: '<unk>',
    fuse_unk: true,
    byte_fallback: true,
    vocab: vocabulary([...specials, ...bytes, ...letters]),
    merges,
  },
});
const replace = { type: 'Replace', pattern: { String: '▁' }, content: ' ' };
const fused = [{ type: 'ByteFallback' }, { type: 'Fuse' }, { type: 'Strip', content: ' ', start: 1, stop: 0 }];

/** Llama-2: byte fallback, a space put before the text, `<s>` in front. */
export const legacy: object = piece(
  {
    type: 'Sequence',
    normalizers: [
      { type: 'Prepend', prepend: '▁' },
      { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    ],
  },
  null,
  { type: 'Sequence', decoders: [replace, ...fused] },
);

/** The same as newer transformers save it. */
export const metaspace: object = piece(
  null,
  { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first', split: false },
  { type: 'Sequence', decoders: [replace, ...fused] },
);

/** GPT-2's letters for the 256 bytes. */
const byteLetters: readonly string[] = (() => {
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
})();

/** Llama-3: byte-level, specials after the ordinary tokens. */
export const byteLevel: object = {
  version: '1.0',
  added_tokens: added(['<|begin|>', '<|end|>'], 260),
  normalizer: null,
  pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
  post_processor: {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<|begin|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [],
    special_tokens: { '<|begin|>': { id: '<|begin|>', ids: [260], tokens: ['<|begin|>'] } },
  },
  decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    type: 'BPE',
    ignore_merges: true,
    vocab: vocabulary([...byteLetters, 'he', 'll', 'hell', 'Ġhell']),
    merges: [
      ['h', 'e'],
      ['l', 'l'],
      ['he', 'll'],
      ['Ġ', 'hell'],
    ],
  },
};

export const config: object = {
  add_bos_token: true,
  bos_token: '<s>',
  eos_token: { content: '</s>' },
  unk_token: '<unk>',
};
export const byteLevelConfig: object = { bos_token: '<|begin|>', eos_token: '<|end|>' };
