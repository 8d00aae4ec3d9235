import type { Device } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { backends } from '../test/backends.js';
import { goldenModel, maxDifference, type Vector, vectorsOf } from '../test/files.js';
import { type LoadedModel, loadNetwork } from './load.js';

// The golden files are made by PyTorch; see packages/conformance/golden/README.md.
const tolerance = 1e-4;
const row = ({ data, shape }: Vector, index: number) => data.subarray(index * shape[1]!, (index + 1) * shape[1]!);

const names = ['llama-base', 'llama-gqa', 'llama3-rope', 'llama-tied', 'llama-sharded-bf16', 'zamba-a', 'zamba-b'];
const cases = backends.flatMap((backend) => names.map((name) => [name, backend.name, backend] as const));

describe.each(cases)('%s on %s', (name, _, backend) => {
  let device: Device;
  const vectors = vectorsOf(`${name}/vectors.safetensors`);
  const ids = [...vectors.ids!.data];
  const logits = vectors.logits!;
  let model: LoadedModel;
  beforeAll(async () => {
    device = await backend.open();
    model = await loadNetwork(goldenModel(name), { device, slots: 3, context: 1500, stepTokens: 5 });
  });
  afterAll(async () => {
    await model[Symbol.asyncDispose]();
    expect(device.memory()).toEqual({ buffers: 0, bytes: 0 });
    await device[Symbol.asyncDispose]();
  });

  it('gives the golden logits of all tokens in one pass', async () => {
    await using whole = await loadNetwork(goldenModel(name), { device, context: 18 });
    using sequence = whole.open();
    const [all] = await whole.run([{ sequence, ids }], { logits: 'all' });
    expect(maxDifference(all!, logits.data)).toBeLessThan(tolerance);
  });

  it('gives them in pieces, too', async () => {
    using sequence = model.open();
    const [all] = await model.run([{ sequence, ids }], { logits: 'all' });
    expect(maxDifference(all!, logits.data)).toBeLessThan(tolerance);
    expect(sequence.past).toBe(18);
  });

  it('gives the golden logits of a prefill and of every decode step', async () => {
    using sequence = model.open();
    const [prefill] = await model.run([{ sequence, ids: ids.slice(0, 13) }]);
    expect(maxDifference(prefill!, row(vectors['prefill.logits']!, 12))).toBeLessThan(tolerance);
    for (const step of [0, 1, 2, 3, 4]) {
      const [decoded] = await model.run([{ sequence, ids: [ids[13 + step]!] }]);
      expect(maxDifference(decoded!, vectors[`decode.${step}.logits`]!.data)).toBeLessThan(tolerance);
    }
  });

  it('serves sequences of unlike lengths in one batch', async () => {
    using long = model.open();
    using short = model.open();
    using later = model.open();
    await model.run([{ sequence: later, ids: ids.slice(0, 9) }], { logits: 'none' });
    const inputs = [
      { sequence: long, ids: ids.slice(0, 17) },
      { sequence: later, ids: ids.slice(9, 10) },
      { sequence: short, ids: ids.slice(0, 4) },
    ];
    const out = await model.run(inputs);
    for (const [index, last] of [16, 9, 3].entries()) {
      expect(maxDifference(out[index]!, row(logits, last))).toBeLessThan(tolerance);
    }
  });
});

it('rotates by the right angles far beyond the first 512 positions', async () => {
  const vectors = vectorsOf('llama3-rope/vectors.safetensors');
  await using device = await backends[1]!.open();
  await using model = await loadNetwork(goldenModel('llama3-rope'), { device, context: 1500 });
  using sequence = model.open();
  const ids = [...vectors['far.ids']!.data];
  await model.run([{ sequence, ids: ids.slice(0, -4) }], { logits: 'none' });
  const [last] = await model.run([{ sequence, ids: ids.slice(-4) }], { logits: 'all' });
  expect(maxDifference(last!, vectors['far.logits']!.data)).toBeLessThan(tolerance);
});
