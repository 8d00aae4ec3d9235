import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { referenceBackend } from '@dsla/reference';
import { loadNetwork } from '@dsla/runtime';
import { describe, expect, it } from 'vitest';
import { modelDouble } from '../test/double.js';
import { logProbabilities } from './score.js';

// Logits by transformers; see packages/conformance/golden/README.md.
const golden = fileURLToPath(new URL('../../conformance/golden/models/llama-base', import.meta.url));

function tensor(name: string): { readonly shape: readonly number[]; readonly values: DataView } {
  const file = readFileSync(`${golden}/vectors.safetensors`);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { shape, data_offsets: range } = JSON.parse(file.toString('utf8', 8, start))[name];
  return { shape, values: new DataView(new Uint8Array(file.subarray(start + range[0], start + range[1])).buffer) };
}

describe('log-probabilities', () => {
  it('are the log-softmax of the golden logits, however the work is cut', async () => {
    const stored = tensor('ids');
    const ids = Array.from({ length: 18 }, (_, token) => stored.values.getInt32(token * 4, true));
    const { shape, values } = tensor('logits');
    const want = ids.slice(1).map((id, token) => {
      const row = Array.from({ length: shape[1]! }, (_, at) => values.getFloat32((token * shape[1]! + at) * 4, true));
      return row[id]! - Math.log(row.reduce((sum, logit) => sum + Math.exp(logit), 0));
    });
    await using device = await referenceBackend.open();
    await using model = await loadNetwork(golden, { device, slots: 3, context: 17 });
    const requests = [1, 9, 17].map((from) => ({ ids, from }));
    for (const options of [{}, { batch: 1 }, { batch: 2, logitsAtOnce: 97 * 2 * 3 }, { logitsAtOnce: 1 }]) {
      const got = await logProbabilities(model, requests, options);
      for (const [index, { from }] of requests.entries()) {
        expect(got[index]).toHaveLength(18 - from);
        for (const [token, value] of got[index]!.entries()) expect(value).toBeCloseTo(want[from - 1 + token]!, 4);
      }
    }
    expect(Object.values(model.states).every(({ bytes }) => bytes === 0)).toBe(true);
  });

  it('are reported as they come, and stop when told to', async () => {
    const model = modelDouble({ vocabulary: 4, next: () => [0, 0, 0, 0] });
    const seen: number[][] = [];
    const requests = Array.from({ length: 5 }, () => ({ ids: [0, 1, 2], from: 1 }));
    const all = await logProbabilities(model, requests, { onProgress: (...counts) => seen.push(counts) });
    expect(seen).toEqual([
      [2, 5],
      [4, 5],
      [5, 5],
    ]);
    expect(all.flatMap((values) => [...values])).toEqual(Array(10).fill(-Math.log(4)));
    const abort = new AbortController();
    const stopped = logProbabilities(model, requests, { signal: abort.signal, onProgress: () => abort.abort() });
    await expect(stopped).rejects.toThrow();
    expect(model.open()).toBeDefined(); // its sequences are closed
  });

  it.each([
    [{ ids: [1, 2], from: 0 }, /1\.\.1, got 0/],
    [{ ids: [1, 2], from: 2 }, /1\.\.1, got 2/],
    [{ ids: [1, 2, 3, 0, 1], from: 1 }, /context of 3, got "5 tokens"/],
  ])('refuse a request that does not fit: %j', async (request, message) => {
    const model = modelDouble({ vocabulary: 4, next: () => [0, 0, 0, 0], context: 3 });
    await expect(logProbabilities(model, [request])).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringMatching(message),
    });
  });
});
