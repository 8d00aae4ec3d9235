import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTokenizer } from '@dsla/runtime';
import { afterAll, describe, expect, it } from 'vitest';
import { modelDouble } from '../test/double.js';
import { embedded } from '../test/files.js';
import { multipleChoice, type Question, readQuestions } from './multiple-choice.js';

const json = (name: string) => JSON.parse(readFileSync(join(embedded('llama-4m'), name), 'utf8'));
const tokenizer = createTokenizer({
  tokenizer: json('tokenizer.json'),
  config: json('tokenizer_config.json'),
  where: 'tokenizer.json',
});
const folder = mkdtempSync(join(tmpdir(), 'dsla-eval-'));
afterAll(() => rmSync(folder, { recursive: true }));
const write = (...lines: readonly unknown[]): string => {
  const file = join(folder, 'questions.jsonl');
  writeFileSync(file, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'));
  return file;
};

describe('questions', () => {
  it('are read in the three forms', async () => {
    const file = write(
      { query: 'Question: 1 + 1?\n', choices: ['2', '3'], gold: 0, more: true },
      '',
      { context_options: ['Ann so Ann', 'Ann so Bo'], continuation: 'left.', gold: 1 },
      { sentence_good: 'He is.', sentence_bad: 'He are.', UID: 'x' },
    );
    expect(await readQuestions(file, { delimiter: '\nAnswer: ' })).toEqual([
      {
        options: [
          { context: 'Question: 1 + 1?\nAnswer: ', continuation: '2' },
          { context: 'Question: 1 + 1?\nAnswer: ', continuation: '3' },
        ],
        gold: 0,
      },
      {
        options: [
          { context: 'Ann so Ann ', continuation: 'left.' },
          { context: 'Ann so Bo ', continuation: 'left.' },
        ],
        gold: 1,
      },
      {
        options: [
          { context: '', continuation: 'He is.' },
          { context: '', continuation: 'He are.' },
        ],
        gold: 0,
      },
    ]);
  });

  it.each([
    ['no JSON', '{"query":', /questions\.jsonl:2: .*JSON/],
    ['an unknown form', { question: 'x' }, /questions\.jsonl:2: .*\{query, choices, gold\}/],
    ['one choice', { query: 'x', choices: ['a'], gold: 0 }, /questions\.jsonl:2/],
    ['gold outside', { query: 'x', choices: ['a', 'b'], gold: 2 }, /questions\.jsonl:2: gold: .*index/],
  ])('are refused with the line: %s', async (_, line, message) => {
    const file = write({ query: 'x', choices: ['a', 'b'], gold: 1 }, line);
    await expect(readQuestions(file)).rejects.toMatchObject({
      code: 'E_FORMAT',
      message: expect.stringMatching(message),
    });
  });

  it('are refused when the file is not there', async () => {
    await expect(readQuestions(join(folder, 'nothing.jsonl'))).rejects.toMatchObject({ code: 'E_IO' });
  });
});

describe('multiple choice', () => {
  // Every token has its own fixed probability, so likelihoods are sums over tokens.
  const weights = Float32Array.from({ length: 4096 }, (_, id) => ((id * 7919) % 997) / 400);
  const total = Math.log(weights.reduce((sum, weight) => sum + Math.exp(weight), 0));
  const model = (context = 1000) =>
    modelDouble({ vocabulary: 4096, next: () => weights, tokenizer, context, slots: 3 });
  const likelihood = (ids: readonly number[]) => ids.reduce((sum, id) => sum + weights[id]! - total, 0);

  it('takes the largest log-likelihood: whole, a byte, a token', async () => {
    const choices = ['ship', 'understanding', 'x y z'];
    const context = 'The captain saw ';
    const before = tokenizer.encode('The captain saw', { bos: false }).length;
    const sums = choices.map((choice) => {
      const own = tokenizer.encode(`The captain saw ${choice}`, { bos: false }).slice(before);
      return { sum: likelihood(own), tokens: own.length, bytes: choice.length };
    });
    const best = (values: readonly number[]) => values.indexOf(Math.max(...values));
    const want = {
      sum: best(sums.map(({ sum }) => sum)),
      perByte: best(sums.map(({ sum, bytes }) => sum / bytes)),
      perToken: best(sums.map(({ sum, tokens }) => sum / tokens)),
    };
    expect(want).toEqual({ sum: 0, perByte: 1, perToken: 2 });
    const options = choices.map((continuation) => ({ context, continuation }));
    for (const gold of choices.keys()) {
      const result = await multipleChoice(model(), [{ options, gold }]);
      for (const rule of ['sum', 'perByte', 'perToken'] as const) {
        expect(result[rule].value).toBe(want[rule] === gold ? 1 : 0);
        expect(result[rule].n).toBe(1);
      }
      expect(result.truncated).toBe(0);
    }
  });

  it('scores whole sentences where there is no context', async () => {
    const [a, b] = ['She is here.', 'She are here.'];
    const right = likelihood(tokenizer.encode(a!, { bos: false })) > likelihood(tokenizer.encode(b!, { bos: false }));
    const options = [a!, b!].map((continuation) => ({ context: '', continuation }));
    expect((await multipleChoice(model(), [{ options, gold: 0 }])).sum.value).toBe(right ? 1 : 0);
  });

  it('cuts a context that is too long at its start, and says so', async () => {
    const seen: number[][] = [];
    const next = (history: readonly number[]) => {
      seen.push([...history]);
      return weights;
    };
    const small = modelDouble({ vocabulary: 4096, next, tokenizer, context: 8, slots: 1 });
    const context = 'One two three four five six seven eight nine ten ';
    const question: Question = {
      options: ['ships', 'boats'].map((continuation) => ({ context, continuation })),
      gold: 0,
    };
    expect((await multipleChoice(small, [question])).truncated).toBe(2);
    const whole = tokenizer.encode(`${context}boats`);
    expect(seen.at(-1)).toEqual([1, ...whole.slice(-8, -1)]);
  });

  it('refuses a continuation that is too long, and no questions', async () => {
    const options = ['a', 'b'].map((letter) => ({ context: 'x ', continuation: `${letter} `.repeat(30) }));
    await expect(multipleChoice(model(8), [{ options, gold: 0 }])).rejects.toThrow(
      /continuation must fit the context of 8/,
    );
    await expect(multipleChoice(model(), [])).rejects.toMatchObject({ code: 'E_INPUT' });
  });
});
