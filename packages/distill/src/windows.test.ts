import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { temporaryFolder } from '../test/folders.js';
import { fingerprint, openText, partOf, type TextSource, textSource } from './source.js';
import { openWindows } from './windows.js';

// A token a character; 1 begins a window.
const characters = { bos: 1, encode: (text: string) => [...text].map((c) => c.codePointAt(0)!) };
const text = Array.from({ length: 400 }, (_, i) => `word${i}é `).join('');
const source = textSource('words', text);
const options = { tokens: 65, seed: 3, blockBytes: 256 };

async function stream(count: number, more: object = {}, from: TextSource = source): Promise<string> {
  const windows = await openWindows(from, characters, { ...options, ...more });
  return String.fromCodePoint(...(await windows.take(count)).filter((id) => id !== 1));
}

describe('windows', () => {
  it('begin with the begin token and have the length asked for', async () => {
    const ids = await (await openWindows(source, characters, options)).take(3);
    expect(ids).toHaveLength(3 * 65);
    expect([ids[0], ids[65], ids[130]]).toEqual([1, 1, 1]);
    expect([...ids].filter((id) => id === 1)).toHaveLength(3);
  });

  it('hold every word of the text once an epoch, in an order of the seed', async () => {
    const count = Math.floor([...text].length / 64);
    const words = (await stream(count)).trim().split(' ');
    const known = new Set(text.trim().split(' '));
    const whole = words.slice(0, -1); // the last may be cut
    expect(whole.every((word) => known.has(word))).toBe(true);
    expect(new Set(whole).size).toBe(whole.length);
    expect(whole.length).toBeGreaterThan(380);
    expect(whole).not.toEqual(text.split(' ').slice(0, whole.length));
    expect(await stream(5, { seed: 3 })).toBe(await stream(5));
    expect(await stream(5, { seed: 4 })).not.toBe(await stream(5));
  });

  it('go on exactly from every position, also across epochs', async () => {
    const whole = await openWindows(source, characters, options);
    for (let step = 0; step < 150; step++) {
      const position = JSON.parse(JSON.stringify(whole.position));
      const next = await whole.take(1);
      const again = await openWindows(source, characters, { ...options, position });
      expect(await again.take(1)).toEqual(next);
      expect(again.position).toEqual(whole.position);
    }
    expect(whole.position.block).toBeGreaterThan(Math.ceil(source.bytes / 256));
  });

  it('read no more than they need', async () => {
    let read = 0;
    const large = textSource('large', text.repeat(10));
    const counting: TextSource = {
      ...large,
      read: (from, to) => {
        read += to - from;
        return large.read(from, to);
      },
    };
    await (await openWindows(counting, { bos: undefined, encode: characters.encode }, { ...options, tokens: 8 })).take(
      1,
    );
    expect(read).toBeLessThan(large.bytes / 4); // one block and its two edges
  });

  it('refuse a text that is shorter than one window', async () => {
    const short = openWindows(textSource('short', 'a few words'), characters, options);
    await expect(short).rejects.toThrow('short: the text must fill a window of 65 tokens, got "12 tokens"');
    await expect(openWindows(textSource('empty', ''), characters, options)).rejects.toMatchObject({ code: 'E_INPUT' });
    expect(await stream(1, {}, textSource('just', 'x'.repeat(64)))).toBe('x'.repeat(64));
  });

  it('refuse a position that the text does not have', async () => {
    await expect(stream(1, { position: { block: 0, skip: 999 } })).rejects.toMatchObject({ code: 'E_FORMAT' });
  });

  it('cut a text without white space between characters', async () => {
    expect(new Set(await stream(4, {}, textSource('dense', 'é€😀'.repeat(200))))).toEqual(new Set('é€😀'));
  });
});

describe('sources', () => {
  it('are a file, or the .txt files of a folder in order', async () => {
    const folder = await temporaryFolder();
    await writeFile(join(folder, 'b.txt'), 'second');
    await writeFile(join(folder, 'a.txt'), 'first ');
    await writeFile(join(folder, 'c.md'), 'not this');
    const both = await openText(folder);
    expect((await both.read(0, both.bytes)).toString()).toBe('first second');
    expect((await both.read(4, 8)).toString()).toBe('t se');
    expect((await (await openText(join(folder, 'c.md'))).read(0, 3)).toString()).toBe('not');
    await expect(openText(join(folder, 'nowhere'))).rejects.toMatchObject({ code: 'E_IO' });
  });

  it('have parts that share nothing and leave nothing out', async () => {
    const parts = [partOf(source, 0, 0.3), partOf(source, 0.3, 1)];
    const bytes = await Promise.all(parts.map((part) => part.read(0, part.bytes)));
    expect(Buffer.concat(bytes).toString()).toBe(text);
  });

  it('are told apart by their fingerprints', async () => {
    expect(await fingerprint(source)).toBe(await fingerprint(textSource('other name', text)));
    expect(await fingerprint(source)).not.toBe(await fingerprint(textSource('words', `${text.slice(0, -1)}x`)));
  });
});
