import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { dsla, dslaProcess } from '../../test/run.js';
import { plantRecall, temporaryFolder, tinyCheckpoint } from '../../test/tiny.js';
import { parseReport, type Report } from '../report/report.js';

let parent: string;
let models: string[];
beforeAll(async () => {
  parent = await temporaryFolder();
  await plantRecall(parent);
  models = [
    '--llama',
    await tinyCheckpoint('llama-base', parent),
    '--zamba',
    await tinyCheckpoint('zamba-b', parent),
    '--backend',
    'reference',
  ];
});
afterAll(() => rm(parent, { recursive: true }));

const small = ['--lengths', '16,32,64', '--windows', '2', '--rounds', '2', '--quick'];

describe('compare', () => {
  let out: string;
  let report: Report;
  let text: string;
  beforeAll(async () => {
    out = join(parent, 'report');
    const finished = await dsla(['compare', ...models, ...small, '--out', out]);
    expect(finished).toMatchObject({ code: 0, err: expect.stringContaining('report.html') });
    text = finished.out;
    report = parseReport(await readFile(join(out, 'report.json'), 'utf8'), 'report.json');
  });

  it('measures every contender at every length', () => {
    const ids = ['softmax', 'foldable-1', 'foldable-2', 'window-1', 'window-2', 'single-1', 'published-1', 'zamba'];
    expect(report.contenders.map(({ id }) => id)).toEqual(ids);
    for (const rows of [report.bitsPerByte, report.cache]) {
      expect(rows.map(({ contender, length }) => `${contender} ${length}`).sort()).toEqual(
        ids.flatMap((id) => [16, 32, 64].map((length) => `${id} ${length}`)).sort(),
      );
    }
    expect(report.speed).toHaveLength(ids.length * 3 * 2);
    for (const { test, samples } of report.speed) expect(samples).toHaveLength(test === 'prefill' ? 2 : 2 * 8);
    expect(report.gaps).toEqual([]);
  });

  it('asks every contender the same questions', () => {
    // Distances 32 to 40 fit windows of 64 tokens; the shorter windows hold none.
    expect(report.recall.map(({ length, from, to }) => [length, from, to])).toEqual(
      report.contenders.map(() => [64, 32, 40]),
    );
    expect(new Set(report.recall.map(({ estimate }) => estimate.n)).size).toBe(1);
  });

  it('counts the cache of the softmax model and of the window by hand', () => {
    const bytes = (contender: string, length: number) =>
      report.cache.find((row) => row.contender === contender && row.length === length)!.bytes;
    // Keys and values of 48 float32 a token in each of 2 layers; a window keeps 64 + 4 tokens whatever the length.
    expect(bytes('softmax', 16)).toBe(2 * 2 * 48 * 4 * 16);
    expect(bytes('softmax', 64)).toBe(2 * 2 * 48 * 4 * 64);
    expect(bytes('window-2', 16)).toBe(2 * 2 * 48 * 4 * 68);
    expect(bytes('window-2', 64)).toBe(bytes('window-2', 16));
  });

  it('finds that a window as long as the text costs nothing', () => {
    // 64 tokens fit the window of 64 + 4: the same function, so the paired difference vanishes.
    const excess = report.excess.filter(({ contender }) => contender.startsWith('window'));
    expect(excess).toHaveLength(6);
    for (const { estimate } of excess) expect(Math.abs(estimate.value)).toBeLessThan(1e-9);
    // An untuned published layer is another function.
    const published = report.excess.find(({ contender, length }) => contender === 'published-1' && length === 64)!;
    expect(Math.abs(published.estimate.value)).toBeGreaterThan(1e-3);
  });

  it('gives bits per byte near those of random weights', () => {
    // 97 tokens of one byte each: a uniform guess costs log2(97) = 6.6 bits.
    for (const { estimate } of report.bitsPerByte.filter(({ contender }) => contender === 'softmax')) {
      expect(Math.abs(estimate.value - Math.log2(97))).toBeLessThan(1);
    }
  });

  it('says that nothing was tuned, and how it was measured', async () => {
    const html = await readFile(join(out, 'report.html'), 'utf8');
    for (const page of [text, html]) expect(page).toContain('Untuned: before any tuning');
    expect(html).toContain('2 windows of 64 tokens');
    expect(report.machine.node).toBe(process.version);
    expect(report.text.name).toContain('Moby-Dick');
  });

  it('leaves nothing but the two files', async () => {
    expect((await readdir(out)).sort()).toEqual(['report.html', 'report.json']);
  });

  it('follows order.json', async () => {
    const folder = await tinyCheckpoint('llama-base', join(parent, 'ordered'));
    await writeFile(join(folder, 'order.json'), JSON.stringify({ order: [1, 0], keep: 1, origin: 'a test' }));
    const { out: json } = await dsla([
      'compare',
      '--llama',
      folder,
      ...models.slice(4),
      ...small,
      '--out',
      out,
      '--json',
    ]);
    const ordered = parseReport(json, 'stdout');
    // Its folder and the one above have no recall.json.
    expect(ordered.gaps).toEqual(['recall of llama-base: there is no recall.json beside it']);
    expect(ordered.models).toEqual([expect.objectContaining({ order: [1, 0], orderOrigin: 'a test' })]);
    const value = (from: Report) =>
      from.bitsPerByte.find(({ contender }) => contender === 'published-1')!.estimate.value;
    expect(value(ordered)).not.toBeCloseTo(value(report), 6);
  });
});

describe('compare refuses', () => {
  it.each([
    ['levels out of range', ['--levels', '3'], 2, /^dsla: --levels: levels must be in 1\.\.2 for llama-base, got 3\. /],
    ['lengths beyond the context', ['--lengths', '8192'], 2, /^dsla: --lengths: must be at most 4096, .*got 8192\. /],
    [
      'an unknown mixer',
      ['--mixers', 'mamba'],
      2,
      /^dsla: .*Allowed choices are foldable, window, single, published\./,
    ],
    ['an unknown backend', ['--backend', 'cuda'], 2, /^dsla: --backend: must be one of onnx, .*reference,/],
    ['a missing text', ['--text', '/no/such/text'], 1, /^dsla: \/no\/such\/text: could not be read/],
    ['a missing folder', ['--llama', '/no/such/folder'], 1, /^dsla: \/no\/such\/folder\/config\.json: /],
  ])('%s', async (_, args, code, message) => {
    const out = join(parent, 'refused');
    const finished = await dsla(['compare', ...models, ...args, '--out', out]);
    expect(finished).toMatchObject({ code, out: '' });
    expect(finished.err).toMatch(message);
    expect(await readdir(out)).toEqual([]);
  });

  it('a folder that cannot be written, before any work', async () => {
    const file = join(parent, 'file');
    await writeFile(file, '');
    const finished = await dsla(['compare', ...models, '--out', file]);
    expect(finished).toMatchObject({ code: 1, out: '' });
    expect(finished.err).toMatch(
      /^dsla: --out .*: must be a folder that can be written \(.*\)\. Choose another one .*\n$/,
    );
  });

  it('to compare an embedded Llama with a Zamba of another size', async () => {
    const finished = await dsla(['compare', ...models.slice(2), '--out', join(parent, 'refused')]);
    expect(finished).toMatchObject({ code: 2, out: '', err: expect.stringMatching(/^dsla: --zamba: needs --llama/) });
  });
});

it('ends with 130 at Ctrl-C and leaves no file', async () => {
  const out = join(parent, 'interrupted');
  let sent = false;
  const finished = await dslaProcess(['compare', ...models, '--lengths', '64,512', '--out', out], (err, child) => {
    if (sent || !err.includes('bits per byte:')) return;
    sent = true;
    child.kill('SIGINT');
  });
  expect(finished).toMatchObject({ code: 130, out: '' });
  expect(finished.err).toMatch(/dsla: interrupted\. Nothing was left half-written\.\n$/);
  expect(await readdir(out)).toEqual([]);
});

it('does not crash when the reader of stdout has left', async () => {
  const finished = await dslaProcess(['compare', ...models, ...small, '--out', join(parent, 'piped')], (_, child) =>
    child.stdout!.destroy(),
  );
  expect(finished.code).toBe(0);
  expect(finished.err).not.toContain('EPIPE');
});
