import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { embedded, goldenModel } from '../test/files.js';
import { byteLevel, byteLevelConfig, config, legacy, metaspace } from '../test/tokenizers.js';
import { createTokenizer } from './tokenizer.js';

const where = 'tokenizer.json';
const open = (tokenizer: unknown, settings: unknown = config) =>
  createTokenizer({ tokenizer, config: settings, where });
const byte = (value: number) => 3 + value;

describe('encode', () => {
  const { encode, id } = open(legacy);

  it('puts a space and the begin token before a text', () => {
    expect(encode('hello world')).toEqual([1, id('▁hello'), id('▁wor'), id('l'), id('d')]);
  });

  it('falls back to bytes', () => {
    expect(encode('aé€')).toEqual([1, id('▁'), id('a'), ...[0xc3, 0xa9, 0xe2, 0x82, 0xac].map(byte)]);
  });

  it('never adds a second begin token', () => {
    expect(encode('<s>hello')).toEqual([1, id('▁hello')]);
    expect(encode('<s><s>hello')).toEqual([1, 1, id('▁hello')]); // what the caller wrote stays
  });

  it('does as the caller says about the begin token', () => {
    expect(encode('hello', { bos: false })).toEqual([id('▁hello')]);
    expect(open(legacy, { ...config, add_bos_token: false }).encode('hello', { bos: true })).toEqual([1, id('▁hello')]);
  });

  it('follows add_bos_token where the post-processor says something else', () => {
    expect(open(legacy, { ...config, add_bos_token: false }).encode('hello')).toEqual([id('▁hello')]);
    expect(open({ ...legacy, post_processor: null }, config).encode('hello')).toEqual([1, id('▁hello')]);
    expect(open({ ...legacy, post_processor: null }, { bos_token: '<s>' }).encode('hello')).toEqual([id('▁hello')]);
    expect(open(legacy, { bos_token: '<s>' }).encode('hello')).toEqual([1, id('▁hello')]);
  });

  it('gives the begin token alone for an empty text', () => {
    expect(encode('')).toEqual([1]);
    expect(encode('', { bos: false })).toEqual([]);
  });

  it('puts a space only at the start with Metaspace "first", after every special token with the old normaliser', () => {
    expect(open(metaspace).encode('hello</s>hello')).toEqual([1, id('▁hello'), 2, id('hell'), id('o')]);
    expect(encode('hello</s>hello')).toEqual([1, id('▁hello'), 2, id('▁hello')]);
  });

  it('takes a pre-token that is in the vocabulary whole, with byte-level pieces', () => {
    const tokenizer = open(byteLevel, byteLevelConfig);
    expect(tokenizer.encode('hell hell')).toEqual([260, tokenizer.id('hell'), tokenizer.id('Ġhell')]);
  });
});

describe('decode', () => {
  it('gives the text back', () => {
    for (const tokenizer of [open(legacy), open(metaspace), open(byteLevel, byteLevelConfig)]) {
      for (const text of ['hello world', 'two  spaces ', 'line\n\nline', 'é€😀', 'a . b , c', '世界!']) {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }
    }
  });

  it('gives a space at the start back, except with Metaspace "first", which takes it for its own', () => {
    for (const tokenizer of [open(legacy), open(byteLevel, byteLevelConfig)]) {
      expect(tokenizer.decode(tokenizer.encode(' a'))).toBe(' a');
    }
    expect(open(metaspace).decode(open(metaspace).encode(' a'))).toBe('a');
  });

  it('leaves out special tokens and ids outside the vocabulary', () => {
    const { decode, encode } = open(legacy);
    expect(decode([1, ...encode('hello', { bos: false }), 99_999, 2])).toBe('hello');
    expect(decode([1, 2])).toBe('');
    expect(decode([])).toBe('');
  });

  it('shows bytes that are no UTF-8 as U+FFFD', () => {
    const { decode, id } = open(legacy);
    expect(decode([id('a')!, byte(0xe2), byte(0x82), id('b')!])).toBe('a\uFFFDb');
  });

  it('ignores clean_up_tokenization_spaces', () => {
    const { decode, encode } = open(legacy, { ...config, clean_up_tokenization_spaces: true });
    expect(decode(encode('a , b .'))).toBe('a , b .');
  });
});

// Ids and texts by the tokenizers library of Hugging Face.
describe('the tokenizer of the small checkpoints', () => {
  const json = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8'));
  const folder = embedded('llama-4m');
  const { encode, decode } = open(json(folder, 'tokenizer.json'), json(folder, 'tokenizer_config.json'));
  const { cases } = json(goldenModel('tokenizer-4m.json')) as {
    cases: { text: string; ids: number[]; decoded: string }[];
  };

  it.each(cases)('encodes and decodes $text', ({ text, ids, decoded }) => {
    expect(encode(text, { bos: false })).toEqual(ids.slice(1));
    expect(encode(text)).toEqual(text.startsWith('<s>') ? ids.slice(1) : ids);
    expect(decode(ids)).toBe(decoded);
  });
});

describe('ids', () => {
  it('knows size, begin, end and special tokens', () => {
    const tokenizer = open(byteLevel, byteLevelConfig);
    expect(tokenizer).toMatchObject({ size: 262, bos: 260, eos: 261, addsBos: true });
    expect([tokenizer.isSpecial(261), tokenizer.isSpecial(0)]).toEqual([true, false]);
    expect(open(legacy, {})).toMatchObject({ bos: undefined, eos: undefined, addsBos: false });
  });
});

describe('a broken tokenizer.json', () => {
  const { model } = legacy as { model: object };

  it.each([
    ['no object', 'text'],
    ['no model', {}],
    ['a vocabulary that is a list', { ...legacy, model: { ...model, vocab: ['a'] } }],
    ['an id that is no integer', { ...legacy, model: { ...model, vocab: { a: 1.5 } } }],
    ['merges that are numbers', { ...legacy, model: { ...model, merges: [1] } }],
    ['no merges', { ...legacy, model: { ...model, merges: undefined } }],
    ['an added token without an id', { ...legacy, added_tokens: [{ content: 'x' }] }],
    ['an unknown decoder', { ...legacy, decoder: { type: 'Rot13' } }],
  ])('is refused with the cure: %s', (_, tokenizer) => {
    expect(() => open(tokenizer)).toThrow(
      expect.objectContaining({ code: 'E_FORMAT', message: expect.stringContaining('save_pretrained') }),
    );
  });

  it('names every problem at once', () => {
    expect(() => open({ ...legacy, model: { ...model, vocab: [], merges: 3 } })).toThrow(/model\.vocab.*model\.merges/);
  });

  it('refuses a model other than BPE', () => {
    expect(() => open({ ...legacy, model: { type: 'WordPiece' } })).toThrow(
      expect.objectContaining({ code: 'E_UNSUPPORTED' }),
    );
  });
});
