import { readFileSync } from 'node:fs';
import { createTokenizer } from '@dsla/runtime';
import { describe, expect, it } from 'vitest';
import { encodeByWord } from './words.js';

const folder = new URL('../../../apps/harness/checkpoints/llama-4m/', import.meta.url);
const read = (file: string): unknown => JSON.parse(readFileSync(new URL(file, folder), 'utf8'));
const llama = createTokenizer({ tokenizer: read('tokenizer.json'), where: 'tokenizer.json' });

describe('encodeByWord', () => {
  it.each([
    'Call me Ishmael. Some years ago—never mind how long precisely—',
    '  two before, two  within, one after ',
    'lines\n\nand\ttabs \n \n mixed',
    'naïve 東京 🐋 x',
    ' ',
    '',
  ])('gives what the tokenizer gives for the whole text: %j', (text) => {
    const encode = encodeByWord(llama);
    encode('The first text is encoded both ways.');
    expect(encode(text)).toEqual(llama.encode(text, { bos: false }));
    expect(encode(text)).toEqual(llama.encode(text, { bos: false })); // remembered
  });

  it('asks for every word once', () => {
    const asked: string[] = [];
    const encode = encodeByWord({
      encode(text) {
        asked.push(text);
        return llama.encode(text, { bos: false });
      },
    });
    encode('the whale');
    encode('the white whale');
    expect(asked).toEqual(['the whale', 'the', 'whale', 'white']);
  });

  it('encodes texts whole where a token reaches across a space', () => {
    const bytes = { encode: (text: string) => [...Buffer.from(text)] }; // a space is a token of its own
    const encode = encodeByWord(bytes);
    for (const text of ['a b', 'c d']) expect(encode(text)).toEqual([...Buffer.from(text)]);
  });
});
