import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fromFloat16, toFloat16 } from '@dsla/spec';
import { afterAll, describe, expect, it } from 'vitest';
import { emulated, ratio, runs, withWhat } from '../../test/emulate.js';
import { type AttentionForm, attentionOperator } from './attention.js';

// The kernel as C++ on the CPU, with clusters of one block, against softmax attention by its definition.

const numbers = (length: number, seed: number): Float32Array =>
  fromFloat16(toFloat16(Float32Array.from({ length }, (_, at) => 2 * Math.sin(1 + seed * 1e3 + at * 12.9898))));

/** A head's channels at a position: pairs (i, i + rotaryDim / 2) turn. */
function turned(x: Float32Array, position: number, rotaryDim: number): number[] {
  const half = rotaryDim / 2;
  return Array.from(x, (own, i) => {
    if (i >= rotaryDim) return own;
    const angle = angleOf(position, i % half);
    return i < half
      ? own * Math.cos(angle) - x[i + half]! * Math.sin(angle)
      : own * Math.cos(angle) + x[i - half]! * Math.sin(angle);
  });
}
const angleOf = (position: number, pair: number): number => position * 0.7 ** pair;

function softmax(scores: readonly number[]): number[] {
  const weights = scores.map((score) => Math.exp(score - Math.max(...scores)));
  return weights.map((weight) => weight / weights.reduce((a, b) => a + b, 0));
}

const forms: readonly (readonly [number, AttentionForm])[] = [
  [37, { heads: 6, kvHeads: 2, headDim: 24, rotaryDim: 16, scale: 0.3, packed: true }],
  [0, { heads: 2, kvHeads: 2, headDim: 64, rotaryDim: 64, scale: 0.1, packed: false }],
  [300, { heads: 2, kvHeads: 1, headDim: 128, rotaryDim: 0, scale: 0.2, packed: true }],
  [9, { heads: 64, kvHeads: 16, headDim: 8, rotaryDim: 0, scale: 0.5, packed: true }],
];

describe.skipIf(!runs)(`the kernel of softmax attention (${withWhat})`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-kernels-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  it.each(forms)('after %i tokens: %o', (past, form) => {
    const { heads, kvHeads, headDim, rotaryDim, scale, packed } = form;
    const [capacity, positions] = [past + 3, past + 1];
    const [q, k, v] = [heads, kvHeads, kvHeads].map((of, at) => numbers(of * headDim, at)) as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const [keys, values] = [3, 4].map((seed) => numbers(kvHeads * capacity * headDim, seed)) as [
      Float32Array,
      Float32Array,
    ];
    const table = (of: (angle: number) => number): Uint16Array =>
      toFloat16(
        Float32Array.from({ length: (positions * rotaryDim) / 2 }, (_, at) =>
          of(angleOf(Math.floor((2 * at) / rotaryDim), at % (rotaryDim / 2))),
        ),
      );
    const own = packed ? { q: Float32Array.of(...q, ...k, ...v) } : { q, k, v };
    const halves = Object.fromEntries(Object.entries(own).map(([name, data]) => [name, toFloat16(data)] as const));
    const [keyCache, valueCache] = [toFloat16(keys), toFloat16(values)];
    const given = {
      ...halves,
      ...{ keys: keyCache, values: valueCache, past: Int32Array.of(past) },
      ...(rotaryDim > 0 && { cosines: table(Math.cos), sines: table(Math.sin) }),
    };
    const y = new Uint16Array(heads * headDim);
    const made = { y, nextKeys: keyCache, nextValues: valueCache };
    const operator = attentionOperator(form);
    const alone = {
      ...operator,
      source: operator.source.replace(/#define SPLITS \d+/, '#define SPLITS 1'),
      launches: operator.launches.map((launch) => ({ ...launch, grid: [1, ...launch.grid.slice(1)] })),
    };
    const names = { inputNames: Object.keys(given), outputNames: Object.keys(made) };
    emulated({ ...alone, ...names }, folder)({ ...given, ...made }, { tokens: capacity, positions });

    const head = (x: Float32Array, at: number): Float32Array => x.subarray(at * headDim, (at + 1) * headDim);
    const want = Array.from({ length: heads }, (_, h) => {
      const kv = Math.floor((h * kvHeads) / heads);
      const query = turned(head(q, h), past, rotaryDim);
      const rows = Array.from({ length: past }, (_, t) => kv * capacity + t);
      const allKeys = [...rows.map((row) => head(keys, row)), turned(head(k, kv), past, rotaryDim)];
      const allValues = [...rows.map((row) => head(values, row)), head(v, kv)];
      const weights = softmax(allKeys.map((key) => scale * query.reduce((sum, x, c) => sum + x * key[c]!, 0)));
      return Array.from({ length: headDim }, (_, c) => weights.reduce((sum, w, t) => sum + w * allValues[t]![c]!, 0));
    }).flat();
    expect(ratio(fromFloat16(y), Float32Array.from(want))).toBeLessThan(2e-3);
    for (let kv = 0; kv < kvHeads; kv++) {
      const entry = (x: Uint16Array): Float32Array => head(fromFloat16(x), kv * capacity + past);
      const key = Float32Array.from(turned(head(k, kv), past, rotaryDim));
      expect(ratio(entry(keyCache), key)).toBeLessThan(1e-3);
      expect(entry(valueCache)).toEqual(head(v, kv));
      expect(head(fromFloat16(keyCache), kv * capacity + past + 1)).toEqual(head(keys, kv * capacity + past + 1));
    }
  });
});
