import type { Tokenizer } from '@dsla/runtime';
import { describe, expect, it } from 'vitest';
import { prefixesOf, type Window, windowAt } from './windows.js';

// Tokens of up to `width` characters after a begin token; decode gives the characters back.
function chunks(width: number): Tokenizer {
  const pieces: string[] = [];
  return {
    size: 1000,
    bos: 0,
    eos: undefined,
    addsBos: true,
    encode: (text) => [
      0,
      ...(text.match(new RegExp(`[\\s\\S]{1,${width}}`, 'g')) ?? []).map((piece) => pieces.push(piece)),
    ],
    decode: (ids) => ids.map((id) => (id === 0 ? '' : pieces[id - 1]!)).join(''),
    id: () => undefined,
    isSpecial: (id) => id === 0,
  };
}

// 40 paragraphs of 98 letters and two line breaks.
const text = Array.from({ length: 40 }, () => 'abcdefg'.repeat(14)).join('\n\n');

function windowsOf(text: string, tokenizers: readonly Tokenizer[], contexts: number[], count: number): Window[] {
  return Array.from({ length: count }, (_, index) => windowAt(index, text, tokenizers, contexts, count));
}

describe('windowAt', () => {
  it('begins with paragraphs and fits every tokenizer', () => {
    const windows = windowsOf(text, [chunks(4), chunks(3)], [32, 128], 4);
    expect(windows).toHaveLength(4);
    for (const window of windows) {
      expect(window.text).toMatch(/^abc/);
      // Begin token and 31 or 127 tokens of three characters, the shorter ones.
      expect(window.characters).toEqual([93, 381]);
      expect(window.text).toHaveLength(381);
    }
    expect(new Set(windows.map((window) => text.indexOf(window.text))).size).toBe(1); // all paragraphs are alike
  });

  it('takes each from a part of the text of its own', () => {
    const numbered = Array.from({ length: 100 }, (_, index) => `${index}`.padStart(98, '0')).join('\n\n');
    const starts = windowsOf(numbered, [chunks(4)], [16, 64], 4).map((window) => numbered.indexOf(window.text));
    // The first paragraph that begins in each quarter.
    expect(starts).toEqual([0, 2600, 5100, 7500]);
  });

  it('refuses a text that is too short', () => {
    expect(() => windowsOf(text, [chunks(4)], [512], 4)).toThrow(
      /--text: must hold 4 windows of 512 tokens, got 3998 characters\./,
    );
  });
});

describe('prefixesOf', () => {
  it('gives as few tokens as spell out the characters, and their bytes', () => {
    const tokenizer = chunks(4);
    const window = { text: 'aé€xbcdefg', characters: [4, 8] };
    // Begin token, "aé€x" of 1 + 2 + 3 + 1 bytes, "bcde".
    expect(prefixesOf(tokenizer, tokenizer.encode(window.text), window)).toEqual([
      { tokens: 2, bytes: 7 },
      { tokens: 3, bytes: 11 },
    ]);
  });

  it('counts the bytes that the tokens cover, where they cross the end of a context', () => {
    const tokenizer = chunks(4);
    const window = { text: 'abcdefgh', characters: [5] };
    expect(prefixesOf(tokenizer, tokenizer.encode(window.text), window)).toEqual([{ tokens: 3, bytes: 8 }]);
  });
});
