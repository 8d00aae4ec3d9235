import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { onnxBackend } from '@dsla/backend-onnx';
import { referenceBackend } from '@dsla/reference';
import { createTokenizer, loadModel } from '@dsla/runtime';
import { describe, expect, it } from 'vitest';
import { modelDouble } from '../test/double.js';
import { embedded, shared } from '../test/files.js';
import { bitsPerByte, windowsOf } from './bits-per-byte.js';

const json = (name: string) => JSON.parse(readFileSync(join(embedded('llama-4m'), name), 'utf8'));
const files = { tokenizer: json('tokenizer.json'), where: 'tokenizer.json' };
const tokenizer = createTokenizer({ ...files, config: json('tokenizer_config.json') });
const plain = createTokenizer({ ...files, config: {} }); // without a begin token
const sentence = 'The whale, said Ahab — “the white one” — is ours; 時間がない.\n\nAnd the crew said nothing. ';
const text = sentence.repeat(40);

describe('windows of characters', () => {
  const windows = windowsOf(tokenizer, text, { window: { characters: 100 } });

  it('are encoded one by one behind a begin token, the full ones only', () => {
    expect(windows).toHaveLength(Math.floor(text.length / 100));
    for (const [index, { ids }] of windows.entries()) {
      expect(ids).toEqual(tokenizer.encode(text.slice(index * 100, (index + 1) * 100)));
    }
    expect(windowsOf(tokenizer, text, { window: { characters: 100 }, windows: 3 })).toEqual(windows.slice(0, 3));
  });

  it('give the first token, and score the bytes of the others', () => {
    for (const [index, { ids, from, bytes }] of windows.entries()) {
      expect(from).toBe(2);
      const given = tokenizer.decode(ids.slice(0, 2));
      expect(bytes).toBe(Buffer.byteLength(text.slice(index * 100, (index + 1) * 100)) - Buffer.byteLength(given));
    }
  });

  it('leave empty lines out when asked to, and count their bytes', () => {
    const single = windowsOf(tokenizer, text, { window: { characters: 100, lineBreaks: 'single' } });
    expect(single.map(({ bytes }) => bytes)).toEqual(windows.map(({ bytes }) => bytes));
    expect(tokenizer.decode(single[0]!.ids)).toBe(text.slice(0, 100).replace('\n\n', '\n'));
  });
});

describe('windows of tokens', () => {
  it('follow each other in the text, a begin token in front of each', () => {
    const windows = windowsOf(tokenizer, text, { window: { tokens: 32 } });
    const whole = tokenizer.encode(text, { bos: false });
    expect(windows).toHaveLength(Math.floor(whole.length / 31));
    expect(windows.every(({ ids, from }) => ids[0] === 1 && ids.length === 32 && from === 1)).toBe(true);
    expect(windows.flatMap(({ ids }) => ids.slice(1))).toEqual(whole.slice(0, windows.length * 31));
    const bytes = windows.reduce((sum, window) => sum + window.bytes, 0);
    const spelled = tokenizer.decode(whole.slice(0, windows.length * 31)).replace(/\uFFFD+$/, '');
    expect(bytes).toBe(Buffer.byteLength(spelled));
  });

  it('are the same when only the first few are asked for', () => {
    const few = windowsOf(tokenizer, text, { window: { tokens: 32 }, windows: 4 });
    expect(few).toEqual(windowsOf(tokenizer, text, { window: { tokens: 32 } }).slice(0, 4));
  });

  it('give the first token where there is no begin token', () => {
    const [window] = windowsOf(plain, text, { window: { tokens: 8 } });
    const ids = plain.encode(text).slice(0, 8);
    expect(window).toMatchObject({ ids, from: 1 });
    expect(window!.bytes).toBe(Buffer.byteLength(plain.decode(ids)) - Buffer.byteLength(plain.decode(ids.slice(0, 1))));
  });
});

describe('bits per byte', () => {
  it('are log2 of the vocabulary for every token of a model that knows nothing', async () => {
    const model = modelDouble({ vocabulary: 4096, next: () => new Float32Array(4096), tokenizer });
    const result = await bitsPerByte(model, text, { window: { tokens: 32 }, windows: 5 });
    expect(result.perplexity).toBeCloseTo(4096, 6);
    expect(result.bits).toBeCloseTo(12 * result.tokens, 6);
    expect(result.value).toBeCloseTo((12 * result.tokens) / result.bytes, 9);
    expect([result.n, result.tokens]).toEqual([5, 5 * 31]);
    expect(result.protocol).toMatch(/first 5 windows of 32 tokens/);
  });

  it('are none for a model that knows the text', async () => {
    const options = { window: { tokens: 64 }, windows: 1 };
    const [{ ids } = { ids: [] }] = windowsOf(tokenizer, text, options);
    const next = (history: readonly number[]) => {
      expect(history).toEqual(ids.slice(0, history.length));
      const logits = new Float32Array(4096);
      logits[ids[history.length]!] = 100;
      return logits;
    };
    const model = modelDouble({ vocabulary: 4096, next, tokenizer });
    expect((await bitsPerByte(model, text, options)).value).toBeLessThan(1e-9);
  });

  it.each([
    ['no text', '', { window: { characters: 10 } }, /fill a window of 10 characters, got "0 characters"/],
    ['a short text', 'too short', { window: { tokens: 1000 } }, /fill a window of 1000 tokens/],
    ['one token', text, { window: { tokens: 1 } }, /at least 2 tokens, got 1/],
    ['half a character', text, { window: { characters: 2.5 } }, /at least 2 characters, got 2.5/],
  ])('are refused for what cannot be cut: %s', async (_, content, options, message) => {
    const model = modelDouble({ vocabulary: 4096, next: () => [], tokenizer });
    await expect(bitsPerByte(model, content, options)).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringMatching(message),
    });
  });

  const folder = shared('models/tinystories-656k');
  const stories = shared('data/text/tinystories_val.txt');
  // The figure of ../shared/data/README.md does not say how it treats empty lines and the first token. This reading was chosen
  // because it agrees; with the text as it is and every token after the begin token scored, both backends give 1.173.
  it.for([referenceBackend, onnxBackend])(
    'of tinystories-656k are 1.070 on $name, empty lines left out and the first token given',
    { timeout: 180_000 },
    async (backend, { skip }) => {
      skip(!folder || !stories, 'models/tinystories-656k or data/text/tinystories_val.txt is not in ../shared');
      await using device = await backend.open();
      await using model = await loadModel(folder!, { device, slots: 10 });
      const window = { characters: 600, lineBreaks: 'single' } as const;
      const { value } = await bitsPerByte(model, await readFile(stories!, 'utf8'), { window, windows: 70 });
      expect(Math.abs(value - 1.07)).toBeLessThan(0.003);
    },
  );
});
