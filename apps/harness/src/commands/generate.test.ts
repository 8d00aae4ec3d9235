import { rm } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { dsla } from '../../test/run.js';
import { temporaryFolder, tinyCheckpoint } from '../../test/tiny.js';

let parent: string;
let llama: string;
beforeAll(async () => {
  parent = await temporaryFolder();
  llama = await tinyCheckpoint('llama-base', parent);
});
afterAll(() => rm(parent, { recursive: true }));

const generate = (...args: string[]) => dsla(['generate', '-m', llama, '-b', 'reference', ...args]);

describe('generate', () => {
  it('streams text to stdout and tells the usage on stderr', async () => {
    const finished = await generate('hello', '-n', '5');
    expect(finished.code).toBe(0);
    expect(finished.out).toMatch(/\n$/);
    expect(finished.err).toMatch(/^6 prompt tokens in [\d.]+ ms, [0-5] generated in [\d.]+ ms; ended by \w+\.\n$/);
  });

  it('prints one JSON object with the same text', async () => {
    const plain = await generate('hello', '-n', '5', '--quiet');
    expect(plain.err).toBe('');
    const { out } = await generate('hello', '-n', '5', '--json');
    const { text, usage } = JSON.parse(out);
    expect(`${text}\n`).toBe(plain.out);
    expect(usage).toMatchObject({ promptTokens: 6, generatedTokens: expect.any(Number) });
  });

  it('reads the prompt from stdin', async () => {
    const fromStdin = await dsla(['generate', '-m', llama, '-b', 'reference', '-n', '3', '-q'], { stdin: 'hello' });
    expect(fromStdin.out).toBe((await generate('hello', '-n', '3', '-q')).out);
  });

  it('draws the same text for the same seed', async () => {
    const draw = async (seed: string) => (await generate('hello', '--temperature', '1', '--seed', seed, '-q')).out;
    expect(await draw('7')).toBe(await draw('7'));
    expect(await draw('7')).not.toBe(await draw('8'));
  });

  it('stops before a stop text', async () => {
    const { text } = JSON.parse((await generate('hello', '-n', '20', '--json')).out);
    const stop = text.slice(2, 4);
    const stopped = JSON.parse((await generate('hello', '-n', '20', '--json', '--stop', stop)).out);
    expect(stopped.text).toBe(text.slice(0, text.indexOf(stop)));
    expect(stopped.usage.finish).toBe('stop');
  });

  it('runs converted layers', async () => {
    for (const mixer of ['foldable', 'window', 'single', 'published']) {
      expect(await generate('hello', '-n', '2', '--level', '2', '--mixer', mixer)).toMatchObject({ code: 0 });
    }
  });

  it.each([
    ['an empty prompt', [''], 2, /^dsla: prompt: must hold at least one character, got ""\. .*\n$/],
    ['a level out of range', ['a', '--level', '3'], 2, /^dsla: .*level must be an integer in 0\.\.2, got 3\. .*\n$/],
    ['an unknown backend', ['a', '-b', 'cuda'], 2, /^dsla: --backend: must be one of onnx, .*reference,/],
    ['a prompt longer than the context', ['a'.repeat(5000)], 2, /^dsla: .*4096.*\n$/],
    ['a missing folder', ['a', '-m', '/no/such/folder'], 1, /^dsla: .*\/no\/such\/folder.*config\.json.*\n$/],
  ])('refuses %s in one line', async (_, args, code, message) => {
    const finished = await generate(...args);
    expect(finished).toMatchObject({ code, out: '' });
    expect(finished.err).toMatch(message);
  });

  it('ends with 130 when interrupted', async () => {
    const finished = await dsla(['generate', '-m', llama, '-b', 'reference', 'a'], { signal: AbortSignal.abort() });
    expect(finished).toMatchObject({ code: 130, out: '', err: expect.stringMatching(/^dsla: interrupted\./) });
  });
});
