import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { dsla } from '../../test/run.js';
import { plantRecall, temporaryFolder, tinyCheckpoint } from '../../test/tiny.js';
import { embedded } from '../checkpoint.js';
import { parseReport } from '../report/report.js';

let parent: string;
let llama: string;
let tuned: string;
beforeAll(async () => {
  parent = await temporaryFolder();
  await plantRecall(parent);
  llama = await tinyCheckpoint('llama-base', parent);
  tuned = join(parent, 'tuned');
  const data = join(parent, 'data.txt');
  await writeFile(data, Array.from({ length: 900 }, (_, i) => `word ${(i * i) % 97} of ${(i * 7) % 31}`).join(', '));
  const order = join(parent, 'order.json'); // unlike the checkpoint's own, which is from bottom to top
  await writeFile(order, JSON.stringify({ order: [1, 0], keep: 1 }));
  const steps = ['--steps', '2', '--logit-steps', '0', '--rows', '1', '--tokens', '96', '--windows', '2'];
  const args = ['--model', llama, '--data', data, '--engine', 'wasm', '--level', '1', '--order', order, '-o', tuned];
  expect(await dsla(['distill', ...args, ...steps, '-q'])).toMatchObject({ code: 0, err: '' });
});
afterAll(() => rm(parent, { recursive: true }));

const evaluate = async (...args: string[]) => {
  const run = ['eval', '-m', llama, '-b', 'reference', '--window-tokens', '129', '--windows', '2', '--json', '-q'];
  return JSON.parse((await dsla([...run, ...args])).out);
};

describe('--conversion', () => {
  it.each([
    ['generate', ['generate', 'a', '-m']],
    ['eval', ['eval', '-m']],
    ['bench', ['bench', '-p', '8', '-n', '0', '-m']],
    ['compare', ['compare', '--llama']],
  ])('%s refuses one that was made for other weights', async (_, args) => {
    const conversion = ['--conversion', embedded('llama-4m-dsla')];
    const out = args[0] === 'compare' ? ['-o', join(parent, 'report')] : [];
    const finished = await dsla([...args, llama, ...conversion, ...out, '-q']);
    expect(finished).toMatchObject({ code: 1, out: '' });
    expect(finished.err).toMatch(
      /^dsla: .*llama-4m-dsla: the conversion was made for weights with sha256 \w{12} \(llama\); those of .*llama-base have \w{12}\. Use it with/,
    );
  });

  it('is used in its own order', async () => {
    const one = await evaluate('--level', '1', '--conversion', tuned);
    expect(one).toMatchObject({ mixer: 'foldable', level: 1, untuned: false }); // layer 0, the first from below, is untuned
    expect((await evaluate('--level', '2', '--conversion', tuned)).untuned).toBe(true);
    expect(one.results[0].value).not.toBe((await evaluate('--level', '1')).results[0].value);
  });

  it('is refused with another mixer', async () => {
    const args = ['eval', '-m', llama, '--conversion', tuned, '--mixer', 'single'];
    expect(await dsla(args)).toMatchObject({
      code: 2,
      out: '',
      err: expect.stringMatching(/tuned: the conversion holds mixers of the form foldable, got "--mixer single"\./),
    });
  });

  it('is refused where there is none', async () => {
    const finished = await dsla(['generate', 'a', '-m', llama, '--conversion', parent]);
    expect(finished).toMatchObject({ code: 1, out: '', err: expect.stringContaining('must hold this file') });
  });

  it('stands in a comparison beside untuned mixers', async () => {
    const size = ['--lengths', '16,128', '--windows', '2', '--rounds', '1', '--quick', '--levels', '1'];
    const args = [
      'compare',
      '--llama',
      llama,
      '-b',
      'reference',
      ...size,
      '-o',
      join(parent, 'report'),
      '--json',
      '-q',
    ];
    const report = parseReport((await dsla([...args, '--conversion', tuned])).out, 'stdout');
    const shown = report.contenders.map(({ id, label, tuned }) => `${id}: ${label}, ${tuned}`);
    expect(shown.slice(0, 3)).toEqual([
      'softmax: softmax, false',
      'foldable-1: DSLA, true',
      'untuned-1: DSLA, untuned, false',
    ]);
    expect(report.models[0]!.order).toEqual([1, 0]);
    const bits = (id: string) =>
      report.bitsPerByte.find((row) => row.contender === id && row.length === 128)!.estimate.value;
    expect(bits('foldable-1')).not.toBe(bits('untuned-1'));
  });
});

describe('the embedded Llama', () => {
  it('takes the embedded conversion by itself, unless told not to', async () => {
    const run = async (...args: string[]) =>
      JSON.parse(
        (await dsla(['eval', '--level', '8', '--window-tokens', '65', '--windows', '1', '--json', '-q', ...args])).out,
      );
    expect((await run()).untuned).toBe(false);
    expect((await run('--untuned')).untuned).toBe(true);
  });
});
