import type { Plan } from '@dsla/models';
import type { AttentionBackend, Device } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { backends } from '../test/backends.js';
import { goldenModel, maxDifference } from '../test/files.js';
import { randomConversion, type TemporaryFolder } from '../test/models.js';
import { type LoadedModel, loadNetwork } from './load.js';

const mixers = {
  far: { kind: 'dual', window: 3, sinks: 1 },
  keys: { kind: 'dual', window: 0, gateSource: 'key' },
  hidden: { kind: 'dual', gateSource: 'hidden' },
  window: { kind: 'window', size: 4, sinks: 1 },
} as const;
const ids = Array.from({ length: 30 }, (_, index) => (index * 37 + 11) % 97);

/** Opens a device, too, so that a test sees every byte. */
async function open(
  backend: AttentionBackend,
): Promise<{ device: Device; model: LoadedModel; folder: TemporaryFolder }> {
  const folder = await randomConversion('llama-gqa', mixers, 5);
  const device = await backend.open();
  const options = { device, mixers, conversion: folder.path, slots: 3, context: 40, stepTokens: 7 };
  return { folder, device, model: await loadNetwork(goldenModel('llama-gqa'), options) };
}

describe.each(backends.map((backend) => [backend.name, backend] as const))('swap on %s', (_, backend) => {
  let model: LoadedModel;
  let opened: Awaited<ReturnType<typeof open>>;
  beforeAll(async () => {
    opened = await open(backend);
    model = opened.model;
  });
  afterAll(async () => {
    await model[Symbol.asyncDispose]();
    expect(opened.device.memory().bytes).toBe(0);
    await opened.device[Symbol.asyncDispose]();
    await opened.folder[Symbol.asyncDispose]();
  });
  const prefix = ids.slice(0, 20);
  const rest = ids.slice(20);

  // Of the top layer: layers above a converted one would have seen other inputs in the prefix.
  it.each(['far', 'keys'])('continues as a prefill with the new plan would: %s', async (mixer) => {
    const plan = ['default', mixer];
    using swapped = model.open();
    using prefilled = model.open(plan);
    const inputs = [swapped, prefilled].map((sequence) => ({ sequence, ids: prefix }));
    await model.run(inputs, { logits: 'none' });
    await model.swap(swapped, plan);
    expect(swapped).toMatchObject({ past: 20, plan });
    const [a, b] = await model.run(
      [swapped, prefilled].map((sequence) => ({ sequence, ids: rest })),
      { logits: 'all' },
    );
    expect(maxDifference(a!, b!)).toBeLessThan(1e-4);
    using unchanged = model.open();
    await model.run([{ sequence: unchanged, ids: prefix }], { logits: 'none' });
    const [c] = await model.run([{ sequence: unchanged, ids: rest }], { logits: 'all' });
    expect(maxDifference(a!, c!)).toBeGreaterThan(1e-2);
  });

  it('frees the caches that are no longer needed', async () => {
    using sequence = model.open();
    await model.run([{ sequence, ids: prefix }], { logits: 'none' });
    const held = () =>
      ['layers.0.kv', 'layers.0.far', 'layers.1.kv', 'layers.1.far'].map((name) => model.states[name]!.bytes > 0);
    expect(held()).toEqual([true, false, true, false]);
    await model.swap(sequence, ['default', 'far']);
    expect(held()).toEqual([true, false, false, true]);
    await model.swap(sequence, ['far', 'far']);
    expect(held()).toEqual([false, true, false, true]);
  });

  it('leaves every other sequence bit-equal', async () => {
    const play = async (swap: boolean): Promise<Float32Array[]> => {
      using a = model.open();
      using b = model.open(['far', 'default']);
      using c = model.open();
      const batch = (own: readonly number[], from: number) =>
        [a, b, c].map((sequence, index) => ({ sequence, ids: own.map((id) => (id + index) % 97).slice(from * index) }));
      await model.run(batch(prefix, 3));
      const out: Float32Array[] = [];
      for (const id of rest.slice(0, 4)) {
        if (swap && out.length === 6) await model.swap(c, ['default', 'far']);
        out.push(...(await model.run(batch([id], 0))));
      }
      return out;
    };
    const [plain, swapped] = [await play(false), await play(true)];
    const others = (rows: readonly Float32Array[]) => rows.filter((_, index) => index % 3 !== 2);
    expect(others(swapped)).toEqual(others(plain));
    expect(swapped.at(-1)).not.toEqual(plain.at(-1));
  });

  it('serves rows of unlike plans in one batch as it serves each alone', async () => {
    const plans = [
      ['far', 'keys'],
      ['default', 'window'],
      ['hidden', 'far'],
    ];
    const alone: Float32Array[] = [];
    for (const plan of plans) {
      using sequence = model.open(plan);
      alone.push(...(await model.run([{ sequence, ids: prefix }], { logits: 'all' })));
    }
    const sequences = plans.map((plan) => model.open(plan));
    const together = await model.run(
      sequences.map((sequence) => ({ sequence, ids: prefix })),
      { logits: 'all' },
    );
    for (const sequence of sequences) sequence[Symbol.dispose]();
    for (const [row, logits] of together.entries()) expect(maxDifference(logits, alone[row]!)).toBeLessThan(1e-4);
  });

  it.each([
    [['default', 'far'], ['default', 'default'], /layer 1 from far to default.*do not hold the tokens that softmax/],
    [['default', 'far'], ['default', 'keys'], /from far to keys.*do not hold the tokens that keys needs/],
    [
      ['default', 'default'],
      ['window', 'default'],
      /layer 0 from default to window.*cannot be rebuilt from a KV cache/,
    ],
    [['default', 'default'], ['hidden', 'default'], /cannot be rebuilt/],
  ] as [Plan, Plan, RegExp][])('refuses %j to %j, and the sequence is as it was', async (from, to, message) => {
    using sequence = model.open(from);
    await model.run([{ sequence, ids: prefix }], { logits: 'none' });
    await expect(model.swap(sequence, to)).rejects.toMatchObject({
      code: 'E_UNSUPPORTED',
      message: expect.stringMatching(message),
    });
    expect(sequence).toMatchObject({ past: 20, plan: from });
    using straight = model.open(from);
    await model.run([{ sequence: straight, ids: prefix }], { logits: 'none' });
    const [a, b] = await model.run([sequence, straight].map((one) => ({ sequence: one, ids: rest })));
    expect(a).toEqual(b);
  });

  it('allows any plan before the first token', async () => {
    using sequence = model.open(['far', 'far']);
    await model.swap(sequence, ['window', 'default']);
    expect(sequence.plan).toEqual(['window', 'default']);
  });

  it('refuses a plan that does not fit, and an abort, and changes nothing', async () => {
    using sequence = model.open();
    await model.run([{ sequence, ids: prefix }], { logits: 'none' });
    await expect(model.swap(sequence, ['far'])).rejects.toMatchObject({ code: 'E_INPUT' });
    await expect(model.swap(sequence, ['far', 'magic'])).rejects.toMatchObject({ code: 'E_INPUT' });
    const aborted = model.swap(sequence, ['far', 'far'], AbortSignal.abort());
    await expect(aborted).rejects.toMatchObject({ code: 'E_ABORTED' });
    expect(sequence).toMatchObject({ past: 20, plan: ['default', 'default'] });
    expect(model.states['layers.0.far']!.bytes).toBe(0);
  });
});

it('is refused where the model was compiled for one plan', async () => {
  const [backend] = backends;
  await using device = await backend!.open();
  const plan = ['default', 'far'];
  await using model = await loadNetwork(goldenModel('llama-gqa'), { device, mixers, plan, context: 40 });
  using sequence = model.open();
  expect(sequence.plan).toEqual(plan);
  await expect(model.swap(sequence, ['far', 'far'])).rejects.toThrow(/compiled for.*Load it without a plan/);
  expect(() => model.open(['default', 'default'])).toThrow(/compiled for/);
});
