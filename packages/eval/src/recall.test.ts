import { readFileSync } from 'node:fs';
import { onnxBackend } from '@dsla/backend-onnx';
import { loadNetwork } from '@dsla/runtime';
import { describe, expect, it } from 'vitest';
import { modelDouble } from '../test/double.js';
import { embedded } from '../test/files.js';
import { parseRecallFormat, recall, recallWindows } from './recall.js';

const json = JSON.parse(readFileSync(embedded('recall.json'), 'utf8'));
const format = parseRecallFormat(json);
const [bos, key, value, query] = [1, 259, 260, 261];
const text = Array.from({ length: 5000 }, (_, index) => 262 + ((index * 7919) % 3800));
const draw = { format, length: 512, windows: 20, from: 100, to: 300, seed: 3 };

describe('recall windows', () => {
  const windows = recallWindows(text, draw);

  it('plant every pair that they ask for, at its distance', () => {
    const asked = windows.flatMap(({ ids, questions }) => questions.map((question) => ({ ids, ...question })));
    expect(asked.length).toBeGreaterThan(100);
    for (const { ids, at, distance } of asked) {
      const question = [...ids.slice(at - 4, at + 2)];
      const plant = [...ids.slice(at - 4 - distance, at + 2 - distance)];
      expect(question[0]).toBe(query);
      expect(plant).toEqual([key, ...question.slice(1)]);
      expect(question[3]).toBe(value);
      expect(distance).toBeGreaterThanOrEqual(100);
      expect(distance).toBeLessThan(300);
      expect(distance % 16).toBe(8);
    }
  });

  it('are ordinary text elsewhere, behind a begin token', () => {
    for (const { ids, questions } of windows) {
      expect(ids[0]).toBe(bos);
      expect(ids.filter((id) => id === key)).toHaveLength(questions.length);
      expect(ids.filter((id) => id === query)).toHaveLength(questions.length);
      const planted = new Set(
        questions.flatMap(({ at, distance }) => [0, 1, 2, 3, 4, 5].flatMap((i) => [at - 4 + i, at - 4 - distance + i])),
      );
      const start = text.findIndex((_, from) =>
        [...ids].every((id, i) => i === 0 || planted.has(i) || text[from + i] === id),
      );
      expect(start).toBeGreaterThanOrEqual(0);
    }
  });

  it('follow from the seed', () => {
    expect(recallWindows(text, draw)).toEqual(windows);
    expect(recallWindows(text, { ...draw, seed: 4 })).not.toEqual(windows);
  });

  it.each([
    [{ from: 0, to: 8 }, /distances are 8, 24, \.\.\. 488/],
    [{ from: 100, to: 600 }, /in windows of 512 tokens, got "100\.\.600"/],
    [{ length: 6000, from: 8, to: 9 }, /at least 6000 tokens, got 5000/],
  ])('are refused where they cannot be made: %j', (change, message) => {
    expect(() => recallWindows(text, { ...draw, ...change })).toThrow(message);
  });
});

describe('recall', () => {
  const buckets = [
    [8, 64],
    [200, 400],
  ] as const;
  const options = { format, length: 512, windows: 3, buckets };
  /** Looks a key up in what it has read; forgets what is further back than `memory`. */
  const lookup =
    (memory: number, wrongSecond = false) =>
    (history: readonly number[]) => {
      const logits = new Float32Array(4096);
      const at = history.length - (history.at(-1) === value ? 3 : 4); // of k1
      const [k1, k2] = [history[at], history[at + 1]];
      const given = history.length - at - 3; // value tokens so far
      for (let from = Math.max(0, at - memory); from < at - 1; from++) {
        if (history[from] === key && history[from + 1] === k1 && history[from + 2] === k2) {
          logits[history[from + 4 + given]!] = wrongSecond && given === 1 ? -1 : 1;
        }
      }
      return logits;
    };

  it('is 1 for a model that looks up, 0 beyond its memory', async () => {
    const result = await recall(modelDouble({ vocabulary: 4096, next: lookup(100) }), text, options);
    expect(result.map(({ from, to, value }) => [from, to, value])).toEqual([
      [8, 64, 1],
      [200, 400, 0],
    ]);
    const asked = buckets.map(([from, to], seed) => recallWindows(text, { ...options, windows: 3, from, to, seed }));
    expect(result.map(({ n }) => n)).toEqual(
      asked.map((windows) => windows.flatMap(({ questions }) => questions).length),
    );
    expect(result[0]!.interval[0]).toBeLessThan(1);
  });

  it('wants both tokens', async () => {
    const result = await recall(modelDouble({ vocabulary: 4096, next: lookup(1000, true) }), text, options);
    expect(result.map(({ value }) => value)).toEqual([0, 0]);
  });

  it('does not depend on the batch', async () => {
    const model = () => modelDouble({ vocabulary: 4096, next: lookup(250), slots: 3 });
    const results = [];
    for (const batch of [1, 2, 3]) results.push(await recall(model(), text, { ...options, batch }));
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  it('is what the small Llama was trained for', async () => {
    await using device = await onnxBackend.open();
    await using model = await loadNetwork(embedded('llama-4m'), { device, slots: 4, context: 512 });
    const [near, far] = await recall(model, text, { ...options, windows: 4 });
    expect(near!.value).toBeGreaterThan(0.9);
    expect(far!.value).toBeGreaterThan(0.9);
  });
});

describe('recall.json', () => {
  it('is refused with every problem', () => {
    expect(() => parseRecallFormat({ ...json, special: {}, question: ['?'] })).toThrow(
      expect.objectContaining({ code: 'E_FORMAT', message: expect.stringMatching(/special\.<s>.*question/) }),
    );
  });
});
