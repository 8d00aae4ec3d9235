import { existsSync } from 'node:fs';
import { readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { planAt } from '@dsla/models';
import { referenceBackend } from '@dsla/reference';
import { loadNetwork } from '@dsla/runtime';
import type { TrainingDevice } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { temporaryFolder, tinyBase } from '../test/folders.js';
import { killed } from '../test/killed.js';
import { data, heldOut, options, recipe, trainer } from '../test/tiny.js';
import { type ChainEvent, type ChainOptions, chain } from './chain.js';
import { readConversion, readTuned } from './conversion.js';
import { outputOf } from './evaluate.js';
import { openStudent, type Student } from './student.js';
import { modelTape } from './tapes.js';
import { openWindows } from './windows.js';

const order = { order: [1, 0], keep: 1, origin: 'a test' };
const mixer = { name: 'foldable', options };
let device: TrainingDevice;
let base: string;

beforeAll(async () => {
  device = await trainer();
  base = await tinyBase();
});
afterAll(() => device[Symbol.asyncDispose]());

const student = (own = mixer): Promise<Student> => openStudent(base, { device, mixer: own });
const settings = (out: string, more: Partial<ChainOptions> = {}): ChainOptions => ({
  order,
  level: 2,
  recipe,
  data,
  heldOut,
  out,
  ...more,
});
/** Losses by `task step`. */
const losses = (events: readonly ChainEvent[]): Map<string, number> =>
  new Map(events.flatMap((event) => (event.kind === 'step' ? [[`${event.task} ${event.step}`, event.loss]] : [])));

async function run(out: string, more: Partial<ChainOptions> = {}, tuning = mixer): Promise<ChainEvent[]> {
  await using own = await student(tuning);
  const events: ChainEvent[] = [];
  await chain(own, settings(out, { onProgress: (event) => events.push(event), ...more }));
  return events;
}

describe('chain', () => {
  it('tunes layer by layer, makes each better than untuned, and saves every level', async () => {
    const out = await temporaryFolder();
    const events = await run(out);
    const levels = events.flatMap((event) => (event.kind === 'level' ? [event.result] : []));
    expect(levels.map(({ level, layer }) => [level, layer])).toEqual([
      [1, 1],
      [2, 0],
    ]);
    for (const { kl, untuned, misfits } of levels) {
      expect(kl.value).toBeLessThan(untuned!.value * 0.95);
      expect(misfits.map(({ task }) => task.split(', ')[1])).toEqual(['match', 'logits']);
      for (const { before, after } of misfits) expect(after).toBeLessThanOrEqual(before);
    }
    const conversion = await readConversion(out, base);
    expect(conversion).toMatchObject({ level: 2, mixer, order });
    expect(JSON.parse(await readFile(join(out, 'conversion.json'), 'utf8')).evidence.levels).toHaveLength(2);
  });

  it.each([
    ['', mixer],
    [', with a change of o', { name: 'foldable', options: { ...options, outputRank: 2 } }],
  ])('serves what it trained%s: the reference backend gives the same logits from the files', async (_, tuning) => {
    const out = await temporaryFolder();
    await run(out, {}, tuning);
    const { folder, mixers, order: read, level } = await readConversion(out, base);
    await using own = await student(tuning);
    const ids = await openWindows(heldOut, own.tokenizer, { tokens: 24, seed: 0 });
    const window = await ids.take(1);
    const plan = planAt(read.order, level, 'foldable', 2);
    await using serving = await referenceBackend.open();
    await using model = await loadNetwork(base, { device: serving, mixers, conversion: folder, plan });
    expect(model.untuned).toEqual([]);
    using sequence = model.open();
    const [want] = await model.run([{ sequence, ids: window }], { logits: 'all' });
    for (const [name, value] of await readTuned(folder)) own.tuned.set(name, value);
    using hybrid = await device.compileTrainable(modelTape(own.description, plan), own.weights, []);
    const got = await outputOf(own, hybrid, { rows: 1, tokens: window.length, ids: window }, 'logits');
    const square = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
    expect(Math.sqrt(square(got.map((value, i) => value - want![i]!)) / square(want!))).toBeLessThan(1e-4);
  });

  it('goes on exactly after an abort, and gives the same conversion', async () => {
    const [whole, broken] = [await temporaryFolder(), await temporaryFolder()];
    const want = losses(await run(whole));
    const got = new Map<string, number>();
    for (const stopAt of [2, 5, 3, 1, Number.POSITIVE_INFINITY]) {
      const stop = new AbortController();
      let steps = 0;
      const onProgress = (event: ChainEvent) => {
        if (event.kind === 'step') got.set(`${event.task} ${event.step}`, event.loss);
        if (event.kind === 'step' && ++steps === stopAt) stop.abort();
      };
      const run1 = run(broken, { resume: true, signal: stop.signal, onProgress });
      if (Number.isFinite(stopAt)) await expect(run1).rejects.toMatchObject({ code: 'E_ABORTED' });
      else await run1;
    }
    expect(got).toEqual(want);
    expect(await readTuned(broken)).toEqual(await readTuned(whole));
  });

  it('goes on exactly after being killed at any moment', async () => {
    const want = losses(await run(await temporaryFolder()));
    const out = await temporaryFolder();
    const got = new Map<string, number>();
    let kills = 0;
    for (let done = false; !done; ) {
      // Some steps, then some milliseconds: during a step, a look, or a save.
      const [steps, pause] = [1 + Math.floor(Math.random() * 8), Math.random() * 60];
      done = await killed(base, out, kills < 2 ? { steps, pause } : undefined, (key, loss) => got.set(key, loss));
      if (!done) kills += 1;
    }
    expect(kills).toBeGreaterThan(0);
    expect(got).toEqual(want);
    expect((await readConversion(out, base)).level).toBe(2);
  });

  it('goes further from a finished run, leaving earlier layers as they are', async () => {
    const out = await temporaryFolder();
    await run(out, { level: 1 });
    const first = await readTuned(out);
    expect(losses(await run(out, { level: 1, resume: true })).size).toBe(0);
    const events = await run(out, { level: 2, resume: true });
    expect([...losses(events).keys()].every((key) => key.startsWith('layer 0'))).toBe(true);
    const both = await readTuned(out);
    for (const [name, value] of first) expect(both.get(name)).toEqual(value);
    expect(both.size).toBe(2 * first.size);
  });

  it('trains what the recipe names, alone or together', async () => {
    const out = await temporaryFolder();
    const events = await run(out, { recipe: { ...recipe, together: 'joint', train: ['gate', 'mix', 'log_weight'] } });
    const tasks = events.flatMap((event) => (event.kind === 'task' ? [event.task] : []));
    expect(tasks).toEqual(['layer 1, match', 'layer 0, match', 'layer 1, 0, logits']);
    const levels = events.flatMap((event) => (event.kind === 'level' ? [event.result.level] : []));
    expect(levels).toEqual([1, 2]);
    expect([...(await readTuned(out)).keys()].some((name) => name.includes('feature'))).toBe(false);
    const nothing = run(await temporaryFolder(), { recipe: { ...recipe, train: ['norm'] } });
    await expect(nothing).rejects.toThrow(/recipe.train must name some of .*gate.weight, gate.bias, mix, got \[norm\]/);
  });

  it('tunes a low-rank change of o, alone if asked to', async () => {
    const out = await temporaryFolder();
    const match1 = { ...recipe.match, steps: 40, rate: 1e-2 };
    const own = { ...recipe, train: ['output'], rates: {}, match: match1, logits: { ...recipe.logits, steps: 0 } };
    const tuning = { name: 'foldable', options: { ...options, outputRank: 4 } };
    const events = await run(out, { level: 1, recipe: own }, tuning);
    const [match] = events.flatMap((event) => (event.kind === 'task' ? [event] : []));
    expect(match!.after).toBeLessThan(0.99 * match!.before);
    const moved = [...(await readTuned(out))].filter(([, { data }]) => data.some((value) => value !== 0));
    expect(moved.map(([name]) => name).sort()).toEqual([
      'layers.1.foldable.output.down',
      'layers.1.foldable.output.up',
    ]);
  });

  it('gives weights rates of their own', async () => {
    const moved = async (rates: Record<string, number>) => {
      const out = await temporaryFolder();
      await run(out, { level: 1, recipe: { ...recipe, rates } });
      const [tensor] = [...(await readTuned(out))].flatMap(([name, value]) =>
        name.endsWith('.log_weight') ? [value] : [],
      );
      return Math.abs(tensor!.data[0]! - options.logWeight);
    };
    expect(await moved({ log_weight: 0 })).toBe(0);
    const [slow, fast] = [await moved({}), await moved({ log_weight: 10 })];
    expect(fast).toBeGreaterThan(3 * slow);
  });
});

describe('the published variant', () => {
  it('trains q, k, v, o, gates and mix with KL and gate cosine', async () => {
    const out = await temporaryFolder();
    await using own = await openStudent(base, { device, mixer: { name: 'published', options: { kind: 'published' } } });
    const match = { ...recipe.match, loss: 'kl', separation: 0.001, rate: 3e-3 } as const;
    const { octaves: _, ...published } = match;
    const [level] = await chain(own, settings(out, { level: 1, recipe: { ...recipe, match: published } }));
    expect(level!.kl.value).toBeLessThan(level!.untuned!.value);
    const names = [...(await readTuned(out)).keys()].map((name) => name.split('.published.')[1]);
    const gates = ['far.weight', 'far.bias', 'near.weight', 'near.bias'];
    expect(names.sort()).toEqual([...gates, 'key', 'mix', 'output', 'query', 'value'].sort());
  });
});

describe('bad input', () => {
  it('names layer and step when the loss is no number', async () => {
    const wild = { ...recipe, match: { ...recipe.match, rate: 1e30, clip: 1e30 } };
    const failure = run(await temporaryFolder(), { recipe: wild });
    await expect(failure).rejects.toThrow(/layer 1, match, step \d+: loss and gradients must be numbers/);
  });

  it('refuses an order of another model, and a level beyond it', async () => {
    const out = await temporaryFolder();
    await expect(run(out, { order: { order: [0, 1, 2], keep: 0 } })).rejects.toMatchObject({ code: 'E_INPUT' });
    await expect(run(out, { level: 3 })).rejects.toThrow(/in 0..2/);
    await expect(run(out, { level: 0 })).rejects.toThrow(/a layer to tune/);
  });

  it('does not overwrite a run by accident, nor go on with another one', async () => {
    const out = await temporaryFolder();
    await run(out, { level: 1 });
    await expect(run(out, { level: 1 })).rejects.toThrow(/holds the checkpoint of an earlier run/);
    const other = { ...recipe, seed: 7 };
    const foreign = run(out, { level: 2, resume: true, recipe: other, data: heldOut });
    await expect(foreign).rejects.toThrow(/belongs to another run \(recipe, data differ\)/);
  });

  it.each([
    ['cut off', (bytes: Buffer) => bytes.subarray(0, bytes.length - 5)],
    ['changed', (bytes: Buffer) => bytes.with(-3, bytes.at(-3)! ^ 1)],
    ['emptied', () => Buffer.alloc(0)],
  ])('refuses a checkpoint that was %s', async (_, damage) => {
    const out = await temporaryFolder();
    await run(out, { level: 1 });
    const path = join(out, 'resume.safetensors');
    await writeFile(path, damage(await readFile(path)));
    const failure = run(out, { level: 2, resume: true });
    await expect(failure).rejects.toMatchObject({ code: 'E_FORMAT', message: expect.stringContaining(path) });
  });

  it.skipIf(!existsSync('/dev/full'))('keeps the last good checkpoint when the disk is full', async () => {
    const out = await temporaryFolder();
    const want = losses(await run(await temporaryFolder()));
    await run(out, { level: 1 });
    const before = await readFile(join(out, 'resume.safetensors'));
    // What is written before it gets its name lies on a full device.
    await symlink('/dev/full', join(out, `resume.safetensors.${process.pid}.partial`));
    await expect(run(out, { level: 2, resume: true })).rejects.toMatchObject({
      code: 'E_IO',
      message: expect.stringContaining('ENOSPC'),
    });
    expect(await readFile(join(out, 'resume.safetensors'))).toEqual(before);
    await rm(join(out, `resume.safetensors.${process.pid}.partial`), { force: true });
    const rest = losses(await run(out, { level: 2, resume: true }));
    for (const [step, loss] of rest) expect(loss).toBe(want.get(step));
    expect(rest.size).toBe(want.size / 2);
  });

  it('leaves nothing half-written in the folder', async () => {
    const out = await temporaryFolder();
    await run(out, { level: 1 });
    expect((await readdir(out)).sort()).toEqual(['conversion.json', 'model.safetensors', 'resume.safetensors']);
  });
});
