import { cp, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { dsla } from '../../test/run.js';
import { temporaryFolder, tinyCheckpoint } from '../../test/tiny.js';
import type { BenchRow } from './bench.js';

let parent: string;
let llama: string;
beforeAll(async () => {
  parent = await temporaryFolder();
  llama = await tinyCheckpoint('llama-base', parent);
});
afterAll(() => rm(parent, { recursive: true }));

const bench = (...args: string[]) => dsla(['bench', '-m', llama, '-b', 'reference', '-q', '-r', '3', ...args]);

describe('bench', () => {
  it('gives rows like llama-bench', async () => {
    const finished = await bench('-p', '8', '-n', '2', '-d', '0,4', '--level', '1', '--json');
    expect(finished).toMatchObject({ code: 0, err: '' });
    const rows: BenchRow[] = JSON.parse(finished.out).rows;
    expect(rows.map(({ test }) => test)).toEqual(['pp8', 'tg2', 'pp8 @ d4', 'tg2 @ d4']);
    expect(rows[3]).toMatchObject({ n_prompt: 0, n_gen: 2, n_depth: 4, n: 3, mixer: 'foldable', level: 1, layers: 2 });
    for (const { samples_ts, avg_ts, stddev_ts, median_ts } of rows) {
      const mean = samples_ts.reduce((sum, sample) => sum + sample, 0) / 3;
      const variance = samples_ts.reduce((sum, sample) => sum + (sample - mean) ** 2, 0) / 2;
      expect(avg_ts).toBeCloseTo(mean, 6);
      expect(stddev_ts).toBeCloseTo(Math.sqrt(variance), 6);
      expect(median_ts).toBe([...samples_ts].sort((a, b) => a - b)[1]);
    }
  });

  it('runs sequences together', async () => {
    const { rows } = JSON.parse((await bench('-p', '6', '-n', '2', '-d', '3', '--batch', '1,3', '--json')).out);
    expect(rows.map(({ test, n_seq }: BenchRow) => [test, n_seq])).toEqual([
      ['pp6 @ d3', 1],
      ['tg2 @ d3', 1],
      ['pp6 @ d3 x 3', 3],
      ['tg2 @ d3 x 3', 3],
    ]);
  });

  it('needs no weights with --synthetic', async () => {
    const folder = join(parent, 'config-only');
    await mkdir(folder);
    await cp(join(llama, 'config.json'), join(folder, 'config.json'));
    const args = ['bench', '-m', folder, '-b', 'reference', '-q', '-r', '1', '-p', '4', '-n', '0', '--json'];
    expect(await dsla(args)).toMatchObject({ code: 1, out: '', err: expect.stringContaining('safetensors') });
    const { rows } = JSON.parse((await dsla([...args, '--synthetic', '--level', '2'])).out);
    expect(rows).toEqual([expect.objectContaining({ test: 'pp4', level: 2, precision: 'f32', weights: 'f32' })]);
  });

  it.each([
    [['--shape', 'llama2-7b'], 'no weights of its own'],
    [['--shape', 'gpt-9'], 'Allowed choices are llama2-7b'],
    [['--device', 'cuda'], 'the devices of reference are cpu'],
    [['--weights', 'q4'], 'matrices in blocks: onnx, webgpu'],
  ])('refuses %s', async (args, sentence) => {
    expect(await bench(...args)).toMatchObject({ code: 2, out: '', err: expect.stringContaining(sentence) });
  });

  it('counts the parameters of the checkpoint', async () => {
    const { rows } = JSON.parse((await bench('-p', '4', '-n', '0', '--json')).out);
    // 2 x 97 x 48 embeddings, 2 layers of 4 x 48 x 48 + 3 x 48 x 88 + 2 x 48, the last norm; float32 on this backend.
    const parameters = 2 * 97 * 48 + 2 * (4 * 48 * 48 + 3 * 48 * 88 + 2 * 48) + 48;
    expect(rows).toEqual([
      expect.objectContaining({ model_n_params: parameters, model_size: 4 * parameters, mixer: 'softmax' }),
    ]);
  });

  it('writes CSV, Markdown and a table', async () => {
    const csv = (await bench('-p', '4', '-n', '0', '--csv')).out.trim().split('\n');
    expect(csv).toHaveLength(2);
    expect(csv[0]).toMatch(/^build_commit,cpu_info,.*,avg_ts,stddev_ts,median_ts$/);
    const md = (await bench('-p', '4', '-n', '0', '--md')).out.split('\n');
    expect(md[0]).toMatch(/^\| model \| size \| params \| .* \| median \|$/);
    expect(md[1]).toMatch(/^\| :-- \| --: /);
    expect(md[2]).toContain('| pp4 |');
    expect((await bench('-p', '4', '-n', '0')).out).toMatch(/│ pp4 +│ 3 │/);
  });

  it('refuses to measure nothing', async () => {
    expect(await bench('-p', '0', '-n', '0')).toMatchObject({ code: 2, out: '' });
  });
});
