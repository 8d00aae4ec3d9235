import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readConversion } from '@dsla/distill';
import { beforeAll, describe, expect, it } from 'vitest';
import { dsla } from '../../test/run.js';
import { temporaryFolder, tinyCheckpoint } from '../../test/tiny.js';

let folder: string;
let model: string;
let data: string;

beforeAll(async () => {
  folder = await temporaryFolder();
  model = await tinyCheckpoint('llama-base', folder);
  data = join(folder, 'data.txt');
  const words = Array.from({ length: 900 }, (_, i) => `word ${(i * i) % 97} of ${(i * 7) % 31}`);
  await writeFile(data, words.join(', '));
});

const train = () => ['--model', model, '--data', data, '--engine', 'wasm', '--tokens', '96', '--windows', '2'];
const distill = (out: string, ...more: string[]) =>
  dsla(['distill', ...train(), '--rows', '2', '--steps', '4', '--logit-steps', '2', '-o', out, ...more]);

describe('dsla distill', () => {
  it('writes a conversion that generate can use, and tells before and after', async () => {
    const out = join(folder, 'first');
    const { code, out: text, err } = await distill(out, '--level', '1');
    expect(code).toBe(0);
    expect(text).toMatch(/misfit untuned/);
    expect(err).toMatch(/level 1: KL from the teacher \S+ -> \S+ nats a token/);
    expect((await readConversion(out, model)).level).toBe(1);
    const [level] = JSON.parse(await readFile(join(out, 'conversion.json'), 'utf8')).evidence.levels;
    expect(level.kl.value).toBeLessThan(level.untuned.value);
    const args = ['generate', 'word', '--model', model, '-b', 'reference', '-l', '1', '--conversion', out, '-n', '3'];
    expect(await dsla(args)).toMatchObject({ code: 0 });
  });

  it('tunes a low-rank change of o with --output-rank, which generate then uses', async () => {
    const out = join(folder, 'ranked');
    expect((await distill(out, '--level', '1', '--quiet', '--output-rank', '2')).code).toBe(0);
    const { mixer } = await readConversion(out, model);
    expect(mixer.options).toEqual({ kind: 'dual', outputRank: 2 });
    const args = ['generate', 'word', '--model', model, '-b', 'reference', '-l', '1', '--conversion', out, '-n', '3'];
    expect(await dsla(args)).toMatchObject({ code: 0 });
  });

  it('goes on with --resume, and not without', async () => {
    const out = join(folder, 'second');
    expect((await distill(out, '--level', '1', '--quiet')).code).toBe(0);
    const again = await distill(out, '--level', '2');
    expect(again).toMatchObject({ code: 2, out: '', err: expect.stringContaining('checkpoint of an earlier run') });
    const { code, out: text } = await distill(out, '--level', '2', '--resume', '--json', '--quiet');
    expect(code).toBe(0);
    expect(JSON.parse(text).levels.map(({ level }: { level: number }) => level)).toEqual([1, 2]);
  });

  it('says what is wrong with its input', async () => {
    const short = join(folder, 'short.txt');
    await writeFile(short, 'too short');
    const order = join(folder, 'order-of-three.json');
    await writeFile(order, JSON.stringify({ order: [2, 0, 1] }));
    const base = ['distill', '--model', model];
    for (const [args, code, message] of [
      [base, 2, /^dsla: --data: must name the text to train on/],
      [
        [...base, '--data', data, '--output-rank', '2', '--mixer', 'published'],
        2,
        /--output-rank: must be left out with/,
      ],
      [[...base, '--data', data, '--output-rank', '4000'], 2, /outputRank must be an integer from 0 to the width of o/],
      [[...base, '--data', short], 2, /short.txt 90-100 %: the text must fill a window of 1024 tokens/],
      [[...base, '--data', join(folder, 'none')], 1, /none: could not be read/],
      [
        [...base, '--data', data, '--order', order],
        2,
        /must name the 2 convertible layers of the model, got \[2, 0, 1\]/,
      ],
      [[...base, '--data', data, '--engine', 'abacus'], 2, /tfjs engine: must be one of .*, got "abacus"/],
      [[...base, '--data', data, '--engine', 'tfjs-node'], 1, /@tensorflow\/tfjs-node is not installed/],
    ] as const) {
      const finished = await dsla([...args, '--quiet', '-o', join(folder, 'wrong')]);
      expect(finished.err).toMatch(message);
      expect(finished).toMatchObject({ code, out: '' });
    }
  });
});

describe('dsla order', () => {
  const order = (metric: string, ...more: string[]) => {
    const out = join(folder, `${metric}.json`);
    return dsla(['order', ...train(), '--steps', '2', '--metric', metric, '-o', out, '--quiet', ...more]);
  };

  it.each(['kl', 'greedy', 'entropy', 'depth', 'random'])(
    'by %s writes an order that distill takes',
    async (metric) => {
      expect(await order(metric)).toMatchObject({ code: 0, out: expect.stringContaining(`By ${metric}: `) });
      const file = join(folder, `${metric}.json`);
      const written = JSON.parse(await readFile(file, 'utf8'));
      expect(written.metric).toBe(metric);
      const out = join(folder, `along-${metric}`);
      const finished = await distill(out, '--level', '1', '--order', file, '--logit-steps', '0', '--quiet');
      expect(finished.code).toBe(0);
      expect((await readConversion(out, model)).order.order).toEqual(written.order);
    },
  );

  it('refuses recall where nobody says how facts are planted', async () => {
    const finished = await order('recall');
    expect(finished).toMatchObject({ code: 2, out: '', err: expect.stringContaining('recall.json') });
  });
});
