import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { dsla } from '../../test/run.js';
import { plantRecall, temporaryFolder, tinyCheckpoint } from '../../test/tiny.js';

let parent: string;
let llama: string;
beforeAll(async () => {
  parent = await temporaryFolder();
  llama = await tinyCheckpoint('llama-base', parent);
});
afterAll(() => rm(parent, { recursive: true }));

const evaluate = (...args: string[]) => dsla(['eval', '-m', llama, '-b', 'reference', '-q', ...args]);

describe('eval --task bpb', () => {
  it('reads windows of tokens or of characters', async () => {
    const tokens = JSON.parse((await evaluate('--window-tokens', '65', '--windows', '3', '--json')).out);
    expect(tokens).toMatchObject({
      task: 'bpb',
      model: 'llama-base',
      mixer: 'softmax',
      level: 0,
      layers: 2,
      untuned: false,
    });
    expect(tokens.results).toEqual([expect.objectContaining({ metric: 'bits per byte', n: 3 })]);
    // Random weights over 97 tokens of one byte each are not far from a uniform guess.
    expect(Math.abs(tokens.results[0].value - Math.log2(97))).toBeLessThan(1);
    const characters = JSON.parse((await evaluate('--window-characters', '64', '--windows', '2', '--json')).out);
    expect(characters.results[0]).toMatchObject({ n: 2, protocol: expect.stringContaining('64 characters') });
  });

  it('prints a table, with the level', async () => {
    const { out } = await evaluate('--window-tokens', '33', '--windows', '2', '--level', '2');
    expect(out).toMatch(/^llama-base, foldable 2\/2, untuned, on float64 loops/);
    expect(out).toMatch(/│ bits per byte │ +\d\.\d{4} │ \d\.\d{4} to \d\.\d{4} │ 2 │/);
  });

  it('has no interval for one window', async () => {
    const { out } = await evaluate('--window-tokens', '33', '--windows', '1');
    expect(out).toMatch(/│ bits per byte │ +\d\.\d{4} │ +– │ 1 │/);
    expect(
      JSON.parse((await evaluate('--window-tokens', '33', '--windows', '1', '--json')).out).results[0],
    ).toMatchObject({ n: 1, interval: [null, null] });
  });

  const stories = fileURLToPath(new URL('../../../../../shared/models/tinystories-656k', import.meta.url));
  const text = fileURLToPath(new URL('../../../../../shared/data/text/tinystories_val.txt', import.meta.url));
  // Needs files that are not in the repository.
  it.skipIf(!existsSync(stories) || !existsSync(text))('agrees with an independent check of a real model', async () => {
    const protocol = ['--window-characters', '600', '--windows', '70', '--line-breaks', 'single'];
    const { out } = await dsla(['eval', '-m', stories, '--text', text, ...protocol, '--json', '-q']);
    expect(Math.abs(JSON.parse(out).results[0].value - 1.07)).toBeLessThan(0.003);
  });
});

describe('eval --task choice', () => {
  it.each([
    ['llm-foundry, choices', { query: 'a b', choices: ['c d', 'e'], gold: 1 }],
    ['llm-foundry, contexts', { context_options: ['a b', 'c'], continuation: 'd', gold: 0 }],
    ['BLiMP', { sentence_good: 'a b c.', sentence_bad: 'c b a.' }],
  ])('answers questions in the form of %s', async (name, question) => {
    const data = join(parent, `${name.length}.jsonl`);
    await writeFile(data, `${JSON.stringify(question)}\n`.repeat(3));
    const finished = await evaluate('--task', 'choice', '--data', data, '--limit', '2', '--json');
    const { results } = JSON.parse(finished.out);
    expect(results).toHaveLength(3);
    for (const result of results) {
      expect(result.n).toBe(2);
      expect([0, 1]).toContain(result.value); // twice the same question
    }
  });
});

describe('eval --task recall', () => {
  it('asks at every distance', async () => {
    await plantRecall(llama);
    const args = ['--task', 'recall', '--lengths', '64,128', '--windows', '2', '--json'];
    const { results } = JSON.parse((await evaluate(...args)).out);
    await rm(join(llama, 'recall.json'));
    expect(results.map(({ metric }: { metric: string }) => metric)).toEqual([
      'recall at 32 to 40',
      'recall at 64 to 104',
    ]);
    // Random weights: chance is 1 in 90 squared.
    for (const { value, n } of results) {
      expect(n).toBeGreaterThanOrEqual(2);
      expect(value).toBe(0);
    }
  });
});

it.each([
  ['an unknown task', ['--task', 'mmlu'], 2, /Allowed choices are bpb, choice, recall\./],
  ['two kinds of windows', ['--window-tokens', '8', '--window-characters', '8'], 2, /cannot be combined/],
  ['questions without a file', ['--task', 'choice'], 2, /^dsla: --data: is needed for multiple choice/],
  ['a missing file of questions', ['--task', 'choice', '--data', '/no/such/file'], 1, /\/no\/such\/file/],
  ['recall without recall.json', ['--task', 'recall'], 2, /^dsla: llama-base: has no recall\.json/],
  ['a level out of range', ['--level', '9'], 2, /level must be an integer in 0\.\.2, got 9/],
  ['an unknown backend', ['-b', 'cuda'], 2, /^dsla: --backend: must be one of onnx, .*reference,/],
])('eval refuses %s', async (_, args, code, message) => {
  const finished = await evaluate(...args);
  expect(finished).toMatchObject({ code, out: '' });
  expect(finished.err).toMatch(message);
});
