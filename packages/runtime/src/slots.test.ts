import { referenceBackend } from '@dsla/reference';
import { type Device, DslaError } from '@dsla/spec';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { goldenModel } from '../test/files.js';
import { type LoadedModel, loadNetwork } from './load.js';

let device: Device;
let model: LoadedModel;
beforeEach(async () => {
  device = await referenceBackend.open();
  model = await loadNetwork(goldenModel('llama-gqa'), { device, slots: 2, context: 16, stepTokens: 4 });
});
afterEach(async () => {
  await model[Symbol.asyncDispose]();
  expect(device.memory().bytes).toBe(0);
});
const ids = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7];
const cacheBytes = () => Object.values(model.states).reduce((sum, { bytes }) => sum + bytes, 0);

describe('slots', () => {
  it('are given out once, and again when they come back', () => {
    const [a, b] = [model.open(), model.open()];
    expect([a.slot, b.slot]).toEqual([0, 1]);
    expect(() => model.open()).toThrow(
      expect.objectContaining({ code: 'E_INPUT', message: expect.stringMatching(/2 slots.*Dispose a sequence/) }),
    );
    a[Symbol.dispose]();
    a[Symbol.dispose]();
    expect(model.open().slot).toBe(0);
    expect(() => model.open()).toThrow(DslaError);
  });

  it('hold nothing once they are back', async () => {
    const sequence = model.open();
    await model.run([{ sequence, ids }]);
    expect(cacheBytes()).toBeGreaterThan(0);
    sequence[Symbol.dispose]();
    expect(cacheBytes()).toBe(0);
    using next = model.open();
    using other = model.open();
    const [a, b] = await model.run([
      { sequence: next, ids },
      { sequence: other, ids },
    ]);
    expect(a).toEqual(b);
  });

  it('can be forked: both go on from the same tokens, apart', async () => {
    using first = model.open();
    await model.run([{ sequence: first, ids }]);
    using second = await model.fork(first);
    expect(second).toMatchObject({ past: 10, slot: 1, plan: first.plan });
    const [a] = await model.run([{ sequence: first, ids: [1, 2] }]);
    const [b] = await model.run([{ sequence: second, ids: [1, 2] }]);
    expect(a).toEqual(b);
    await expect(model.fork(first)).rejects.toMatchObject({ code: 'E_INPUT' });
  });
});

describe('run refuses before anything runs', () => {
  const cases: [string, (sequence: ReturnType<typeof model.open>) => Parameters<typeof model.run>[0], RegExp][] = [
    ['no input', () => [], /at least one sequence/],
    ['no ids', (sequence) => [{ sequence, ids: [] }], /input 0.*at least one token/],
    ['an id outside the vocabulary', (sequence) => [{ sequence, ids: [1, 97] }], /0\.\.96, got 97/],
    ['a fraction', (sequence) => [{ sequence, ids: [1.5] }], /got 1\.5/],
    [
      'a sequence twice',
      (sequence) => [
        { sequence, ids: [1] },
        { sequence, ids: [2] },
      ],
      /appear once/,
    ],
    ['more tokens than the context', (sequence) => [{ sequence, ids: Array(17).fill(1) }], /context of 16, got 17/],
  ];
  it.each(cases)('%s', async (_, inputs, message) => {
    using sequence = model.open();
    const [before] = await model.run([{ sequence, ids: [1] }]);
    sequence[Symbol.dispose]();
    using fresh = model.open();
    await expect(model.run(inputs(fresh))).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringMatching(message),
    });
    expect(fresh.past).toBe(0);
    expect((await model.run([{ sequence: fresh, ids: [1] }]))[0]).toEqual(before);
  });

  it('tokens after a past that leave no room', async () => {
    using sequence = model.open();
    await model.run([{ sequence, ids }]);
    await expect(model.run([{ sequence, ids: Array(7).fill(1) }])).rejects.toThrow(/context of 16, got "10 \+ 7"/);
    expect(sequence.past).toBe(10);
  });

  it('a closed sequence, and one of another model', async () => {
    const sequence = model.open();
    sequence[Symbol.dispose]();
    await expect(model.run([{ sequence, ids: [1] }])).rejects.toMatchObject({ code: 'E_DISPOSED' });
    await using other = await loadNetwork(goldenModel('llama-gqa'), { device, context: 16 });
    using foreign = other.open();
    await expect(model.run([{ sequence: foreign, ids: [1] }])).rejects.toMatchObject({ code: 'E_DISPOSED' });
  });

  it('an abort', async () => {
    using sequence = model.open();
    await model.run([{ sequence, ids }]);
    const run = model.run([{ sequence, ids: [1] }], { signal: AbortSignal.abort() });
    await expect(run).rejects.toMatchObject({ code: 'E_ABORTED' });
    expect(sequence.past).toBe(10);
  });
});

describe('a step that does not finish', () => {
  it('clears its sequences and says so, when aborted between two pieces', async () => {
    using sequence = model.open();
    using other = model.open();
    await model.run([{ sequence: other, ids }]);
    const abort = new AbortController();
    const run = model.run([{ sequence, ids }], { signal: abort.signal });
    await Promise.resolve().then(() => abort.abort());
    await expect(run).rejects.toMatchObject({
      code: 'E_ABORTED',
      message: expect.stringMatching(/slots 0 were cleared.*again from the first/),
      details: { slots: [0] },
    });
    expect([sequence.past, other.past]).toEqual([0, 10]);
    const [again] = await model.run([{ sequence, ids }]);
    const [straight] = await model.run([{ sequence: other, ids: [1] }]).then(async () => {
      other[Symbol.dispose]();
      using fresh = model.open();
      return await model.run([{ sequence: fresh, ids }]);
    });
    expect(again).toEqual(straight);
  });

  it('clears them when the device fails, and keeps its code and cause', async () => {
    const failure = new DslaError('E_MEMORY', { where: 'state', rule: 'no more' });
    const broken: Device = Object.create(device, {
      beginStep: {
        value: () => {
          throw failure;
        },
      },
      capabilities: { value: device.capabilities },
    });
    for (const method of ['compile', 'createState', 'unsupported'] as const) {
      Object.defineProperty(broken, method, { value: device[method].bind(device) });
    }
    await using failing = await loadNetwork(goldenModel('llama-gqa'), { device: broken, context: 16 });
    using sequence = failing.open();
    await expect(failing.run([{ sequence, ids }])).rejects.toMatchObject({ code: 'E_MEMORY', cause: failure });
    expect(sequence.past).toBe(0);
  });

  it('does not touch a sequence that was closed meanwhile', async () => {
    const sequence = model.open();
    const run = model.run([{ sequence, ids }]);
    await Promise.resolve().then(() => sequence[Symbol.dispose]());
    await expect(run).rejects.toMatchObject({ code: 'E_DISPOSED' });
    expect(cacheBytes()).toBe(0);
  });
});

describe('a disposed model', () => {
  it('refuses everything, lets a step in flight end, and can be disposed again', async () => {
    const sequence = model.open();
    const run = model.run([{ sequence, ids: [1] }]);
    await Promise.all([model[Symbol.asyncDispose](), run.catch(() => {})]);
    await model[Symbol.asyncDispose]();
    expect(() => model.open()).toThrow(expect.objectContaining({ code: 'E_DISPOSED' }));
    await expect(model.run([{ sequence, ids: [1] }])).rejects.toMatchObject({ code: 'E_DISPOSED' });
    expect(() => sequence[Symbol.dispose]()).not.toThrow();
  });
});
