import { type DualForm, fromFloat16, type Rope, ringIndex, toFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { type Halves, halves, numbersIn, ratio } from './kernel-numbers.js';
import { openRunner } from './kernel-runner.js';
import { append } from './kernels/cache.js';
import { cumulate } from './kernels/dual-chunks.js';
import { type DualShape, enteringValues, valuesAThread } from './kernels/dual-linear-attention.js';
import { chunkStates, chunkWidth, scanChunks, scanGroups, statesGroups } from './kernels/dual-matrices.js';
import { chunkOutputs } from './kernels/dual-outputs.js';
import { featureTiles } from './kernels/feature-tiles.js';
import { attentionCuts } from './kernels/flash-attention.js';
import { replayCache } from './kernels/fold-state.js';
import { chunkTokens, upTo } from './kernels/kernel.js';

import { featuresAThread, rotate } from './kernels/rope.js';
import { scoreTiles } from './kernels/score-tiles.js';
import type { AttentionShape } from './kernels/softmax-attention.js';
import { tileAttention, tileable, tileWindow } from './kernels/tile-attention.js';
import { wideAttention } from './kernels/wide-attention.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

const plain = {
  states: 2,
  kvHeads: 1,
  headDim: 64,
  temperature: 16,
  ropeInState: false,
} as const satisfies Partial<DualForm>;

describe.skipIf(obstacle)(`kernels of subgroup matrices, spelled out${obstacle ? ` (${obstacle})` : ''}`, () => {
  const shapes: (AttentionShape & { readonly cut: string })[] = [
    { heads: 2, kvHeads: 1, headDim: 32, scale: 0.18, cut: '32 queries' },
    { heads: 2, kvHeads: 1, headDim: 32, scale: 0.18, cut: '16 queries' },
    { heads: 1, kvHeads: 1, headDim: 64, scale: 0.125, cut: '32 queries' },
    { heads: 1, kvHeads: 1, headDim: 64, scale: 0.125, cut: '16 queries' },
    { heads: 1, kvHeads: 1, headDim: 128, scale: 0.09, cut: '32 queries' },
    { heads: 1, kvHeads: 1, headDim: 80, scale: 0.11, cut: '32 queries' },
    { heads: 2, kvHeads: 1, headDim: 144, scale: 0.08, cut: 'of wide heads' },
  ];
  it.each(shapes)('attention in tiles %o', async (shape) => {
    const { heads, kvHeads, headDim, scale, cut } = shape;
    const rows = [
      { slot: 1, past: 30, count: 100 },
      { slot: 0, past: 0, count: 2 }, // a short row, left to others
      { slot: 0, past: 2, count: 70 },
    ];
    const capacity = 140;
    const runner = await openRunner(rows);
    const q = halves(172 * heads * headDim, 1, 3);
    // Later keys have larger scores, so that sums are scaled on the way.
    const grown = (i: number) => 2 + (60 * (Math.floor(i / headDim) % capacity)) / capacity;
    const k = halves(2 * kvHeads * capacity * headDim, 2, grown);
    const v = halves(2 * kvHeads * capacity * headDim, 3, 2);
    const y = runner.buffer(new Uint32Array((172 * heads * headDim) / 2));
    const buffers = [q, k, v].map(({ words }) => runner.buffer(words));
    const kernel = tileable(shape) ? tileAttention(shape, attentionCuts[cut]) : wideAttention(shape);
    await runner.run(
      kernel,
      [...buffers, runner.buffer(new Uint32Array([capacity])), y],
      [runner.view.tiles, heads, 1],
    );
    const result = fromFloat16(new Uint16Array(await runner.read(y)));
    const got: number[] = [];
    const want: number[] = [];
    let token = 0;
    for (const { slot, past, count } of rows) {
      for (let t = 0; t < count; t++, token++) {
        if (count < 9) continue;
        for (let head = 0; head < heads; head++) {
          const at = (token * heads + head) * headDim;
          const cache = (slot * kvHeads + Math.floor((head * kvHeads) / heads)) * capacity * headDim;
          got.push(...result.subarray(at, at + headDim));
          const query = q.numbers.subarray(at, at + headDim);
          want.push(...attend(query, past + t + 1, k.numbers, v.numbers, cache, scale));
        }
      }
    }
    expect(ratio(got, want)).toBeLessThan(1e-3);
  });

  it.each([false, true])('a window in tiles, joined: %s', async (join) => {
    const [past, count, headDim] = [90, 100, 32];
    const window = { size: 40, sinks: 3 };
    const runner = await openRunner([{ slot: 0, past, count }]);
    const [q, k, v] = [1, 2, 3].map((seed) => halves(count * headDim, seed, 2)) as [Halves, Halves, Halves];
    const [keys, values] = [4, 5].map((seed) => halves(43 * headDim, seed, 2)) as [Halves, Halves];
    const sums = Float32Array.from({ length: count * (headDim + 1) }, (_, i) => 2 + Math.sin(i));
    const weight = Float32Array.of(-0.5);
    const y = runner.buffer(new Uint32Array((count * headDim) / 2));
    const buffers = [q, k, v, keys, values].map(({ words }) => runner.buffer(words));
    const joined = join ? [runner.buffer(sums), runner.buffer(weight)] : [];
    const shape = { heads: 1, kvHeads: 1, headDim, scale: headDim ** -0.5 };
    await runner.run(tileWindow(shape, window, join), [...buffers, ...joined, y], [runner.view.tiles, 1, 1]);
    const want = [...Array(count).keys()].flatMap((t) => {
      const at = past + t;
      const seen = [...Array(at + 1).keys()].filter((j) => at - j < window.size || j < window.sinks);
      const of = (ring: Halves, step: Halves, j: number): Float32Array => {
        const [from, place] = j < past ? [ring, ringIndex(j, window.size, window.sinks)] : [step, j - past];
        return from.numbers.subarray(place * headDim, (place + 1) * headDim);
      };
      const query = q.numbers.subarray(t * headDim, (t + 1) * headDim);
      const scores = seen.map((j) => of(keys, k, j).reduce((sum, x, c) => sum + x * query[c]!, 0) / Math.sqrt(headDim));
      const top = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - top));
      const share = join ? Math.exp(weight[0]!) : 0;
      const divisor = weights.reduce((a, b) => a + b, 0) + share * sums[t * (headDim + 1) + headDim]!;
      return [...query].map((_, c) => {
        const exact = seen.reduce((sum, j, n) => sum + weights[n]! * of(values, v, j)[c]!, 0);
        return (exact + share * sums[t * (headDim + 1) + c]!) / divisor;
      });
    });
    expect(ratio(fromFloat16(new Uint16Array(await runner.read(y))), want)).toBeLessThan(1e-3);
  });

  it.each(['f16', 'f32'] as const)('keys in %s are turned eight features at a time, and back', async (key) => {
    const [past, count, headDim, heads, capacity] = [5, 3, 24, 2, 10];
    const rope: Rope = { rotaryDim: 16, frequencies: [1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09] };
    expect(featuresAThread(rope, headDim, 'f16')).toBe(8);
    const runner = await openRunner([{ slot: 1, past, count }]);
    const length = count * heads * headDim;
    const [k, v] = [numbersIn(key, length, 1, 2), halves(length, 2, 2)];
    const table = ropeTable(rope, 16);
    const want = upTo(count * heads).flatMap((n) => {
      return turned(k.numbers.subarray(n * headDim, (n + 1) * headDim), rope, past + Math.floor(n / heads));
    });
    const empty = () => runner.buffer(new Uint32Array(heads * capacity * headDim));
    const [y, keys, values] = [runner.buffer(new Uint32Array(v.words.length)), empty(), empty()];
    const [ks, ropes] = [runner.buffer(k.words), runner.buffer(table)];
    const type = { width: heads * headDim, type: 'f16' } as const;
    await runner.run(rotate(rope, headDim, type, key), [ks, ropes, y], [1, 1, 1]);
    const info = runner.buffer(new Uint32Array([capacity]));
    const buffers = [ks, runner.buffer(v.words), ropes, info, keys, values];
    await runner.run(append(heads, headDim, 'f16', key, rope), buffers, [1, 1, 1]);
    const read = async (buffer: GPUBuffer) => fromFloat16(new Uint16Array(await runner.read(buffer)));
    expect(ratio(await read(y), want)).toBeLessThan(5e-4);
    // Rounded once, after rotation: a number between two halves may go either way, but few are.
    const rounded = fromFloat16(toFloat16(Float32Array.from(want)));
    const unlike = [...(await read(y))].filter((x, i) => i < rounded.length && x !== rounded[i]).length;
    expect(unlike / rounded.length).toBeLessThan(0.02);
    const [allKeys, allValues] = [await read(keys), await read(values)];
    for (let t = 0; t < count; t++)
      for (let head = 0; head < heads; head++) {
        const [at, entry] = [(t * heads + head) * headDim, ((heads + head) * capacity + past + t) * headDim];
        expect(ratio(allKeys.subarray(entry, entry + headDim), want.slice(at, at + headDim))).toBeLessThan(5e-4);
        expect([...allValues.subarray(entry, entry + headDim)]).toEqual([...v.numbers.subarray(at, at + headDim)]);
      }
    const [replayed, copied] = [
      runner.buffer(new Uint32Array(v.words.length)),
      runner.buffer(new Uint32Array(v.words.length)),
    ];
    await runner.run(
      replayCache(heads, headDim, 'f16', rope),
      [keys, values, ropes, info, replayed, copied],
      [1, 1, 1],
    );
    expect(ratio(await read(replayed), k.numbers)).toBeLessThan(1e-3);
    expect([...(await read(copied)).subarray(0, v.numbers.length)]).toEqual([...v.numbers]);
    const plain = [ks, runner.buffer(v.words), info, keys, values];
    await runner.run(append(heads, headDim, 'f16', key), plain, [1, 1, 1]);
    const entry = (heads * capacity + past) * headDim; // of the first head, whose tokens are neighbours
    const tokens = upTo(count).flatMap((t) => [...k.numbers.subarray(t * heads * headDim, (t * heads + 1) * headDim)]);
    const kept = (await read(keys)).subarray(entry, entry + count * headDim);
    expect([...kept]).toEqual([...fromFloat16(toFloat16(Float32Array.from(tokens)))]);
  });

  it('values that enter are copied eight at a time', async () => {
    const [past, count, headDim, kvHeads, window, sinks] = [20, 70, 24, 2, 8, 2];
    const form: DualForm = {
      ...plain,
      kvHeads,
      headDim,
      gate: 'scalar',
      normaliser: true,
      exact: { window, sinks, logWeight: '' },
    };
    const shape: DualShape = { heads: 2, form, width: headDim, type: 'f16' };
    expect(valuesAThread(shape)).toBe(8);
    const runner = await openRunner([{ slot: 0, past, count }]);
    const [v, ring] = [halves(count * kvHeads * headDim, 1), halves(kvHeads * (sinks + window) * headDim, 2)];
    const entered = runner.buffer(new Uint32Array(v.words.length));
    const groups = Math.ceil((count * kvHeads * headDim) / 8 / 256);
    await runner.run(
      enteringValues(shape),
      [runner.buffer(v.words), runner.buffer(ring.words), entered],
      [groups, 1, 1],
    );
    const got = fromFloat16(new Uint16Array(await runner.read(entered)));
    for (let t = 0; t < count; t++)
      for (let head = 0; head < kvHeads; head++) {
        const token = past + t - window;
        const old = head * (sinks + window) + ringIndex(token, window, sinks);
        const fresh = (token - past) * kvHeads + head;
        const [from, at] = token < past ? [ring, old] : [v, fresh];
        const own = (t * kvHeads + head) * headDim;
        expect([...got.subarray(own, own + headDim)]).toEqual([
          ...from.numbers.subarray(at * headDim, (at + 1) * headDim),
        ]);
      }
  });

  it.each([
    ['query', false, false, 'f16'],
    ['key', false, false, 'f16'],
    ['key', false, false, 'f32'],
    ['query', true, true, 'f16'],
    ['key', true, true, 'f16'],
    ['key', true, false, 'f16'],
    ['key', true, true, 'f32'],
    ['key', true, false, 'f32'],
    ['query', true, true, 'f32'],
    ['turned-key', true, true, 'f16'],
    ['turned-key', true, false, 'f16'],
  ] as const)('features of a %s, turned: %s, in the state: %s, in %s', async (of, turns, ropeInState, type) => {
    const [past, count, headDim, features, window, sinks] = [20, 70, 32, 64, 8, 2];
    const rope: Rope = { rotaryDim: 32, frequencies: upTo(16).map((i) => 0.8 ** i) };
    const form: DualForm = {
      ...plain,
      headDim,
      gate: 'scalar',
      normaliser: true,
      exact: { window, sinks, logWeight: '' },
      ...(turns && { rope, ropeInState }),
    };
    const shape: DualShape = { heads: 1, form, width: 2 * features, type: 'f16' };
    const runner = await openRunner([{ slot: 0, past, count }]);
    const [x, ring] = [numbersIn(type, count * headDim, 1, 2), halves((sinks + window) * headDim, 2, 2)];
    const w = halves(features * headDim, 3, 0.3);
    const phi = runner.buffer(new Uint32Array(count * features));
    const buffers = [
      runner.buffer(x.words),
      runner.buffer(w.words),
      ...(turns ? [runner.buffer(ropeTable(rope, 128))] : []),
      ...(of === 'query' ? [] : [runner.buffer(ring.words)]),
      phi,
    ];
    await runner.run(featureTiles(shape, of, type), buffers, [Math.ceil(count / 64), 1, 1]);
    const want = [...Array(count).keys()].flatMap((t) => {
      const token = of === 'query' ? past + t : past + t - window;
      if (of !== 'query' && past + t < window + sinks) return Array(2 * features).fill(0);
      const kept = token < past; // in the ring, where keys are turned
      const [from, at] = kept ? [ring, ringIndex(token, window, sinks)] : [x, token - past];
      const found = from.numbers.subarray(at * headDim, (at + 1) * headDim);
      const done = kept || of === 'turned-key';
      const by = turns && done !== ropeInState ? (done ? -token : token) : 0;
      const own = turned(found, rope, by);
      const y = [...Array(features).keys()].map((f) =>
        own.reduce((sum, v, c) => sum + v * w.numbers[f * headDim + c]!, 0),
      );
      const top = Math.max(...y.map(Math.abs));
      return [...y.map((v) => Math.exp(v - top)), ...y.map((v) => Math.exp(-v - top))];
    });
    expect(ratio(fromFloat16(new Uint16Array(await runner.read(phi))), want)).toBeLessThan(1e-3);
  });

  const forms: Record<string, DualForm> = {
    'scalar gates': { ...plain, gate: 'scalar', normaliser: false },
    'scalar gates, normaliser': { ...plain, gate: 'scalar', normaliser: true },
    'vector gates': { ...plain, gate: 'vector', normaliser: false },
  };
  it.each(Object.entries(forms))('chunks of the dual layer: %s', async (_, form) => {
    const { headDim, kvHeads, states, normaliser } = form;
    const heads = 2;
    const rows = [
      { slot: 1, past: 300, count: 330 },
      { slot: 0, past: 0, count: 4 }, // a short row, left to others
      { slot: 0, past: 4, count: 70 },
    ];
    const tokens = 404;
    const runner = await openRunner(rows);
    const shape: DualShape = { heads, form, width: headDim, type: 'f16' };
    const gates = states * kvHeads * (form.gate === 'vector' ? headDim : 1);
    const columns = headDim + (normaliser ? 1 : 0);
    const q = halves(tokens * heads * headDim, 1);
    const [k, v] = [2, 3].map((seed) => halves(tokens * kvHeads * headDim, seed)) as [Halves, Halves];
    const logits = Float32Array.from({ length: tokens * gates }, (_, i) => 20 * Math.sin(12.9898 * i));
    const mix = Float32Array.of(0.3, -0.4);
    const state = Float32Array.from(
      { length: 2 * states * kvHeads * headDim * columns },
      (_, i) => 3 * Math.sin(i * 1.7),
    );

    // The recurrence in float64, and A inside every tile.
    const gamma = [...mix].map((x) => Math.exp(x) / [...mix].reduce((sum, y) => sum + Math.exp(y), 0));
    const wantState = Float64Array.from(state);
    const want: number[] = [];
    const inner = new Float32Array(tokens * heads * 64);
    const rate = (t: number, i: number, c: number) =>
      -Math.log1p(Math.exp(-logits[t * gates + (form.gate === 'vector' ? i * headDim + c : i)]!)) / 16;
    let first = 0;
    for (const { slot, count } of rows) {
      for (let t = first; t < first + count && count > 8; t++) {
        for (let i = 0; i < states; i++)
          for (let c = 0; c < headDim; c++)
            for (let n = 0; n < columns; n++) {
              const cell = ((slot * states + i) * headDim + c) * columns + n;
              const value = n < headDim ? v.numbers[t * headDim + n]! : 1;
              wantState[cell] = wantState[cell]! * Math.exp(rate(t, i, c)) + k.numbers[t * headDim + c]! * value;
            }
        for (let head = 0; head < heads; head++) {
          const query = q.numbers.subarray((t * heads + head) * headDim, (t * heads + head + 1) * headDim);
          for (let n = 0; n < columns; n++) {
            let sum = 0;
            for (let i = 0; i < states; i++)
              for (let c = 0; c < headDim; c++)
                sum += gamma[i]! * query[c]! * wantState[((slot * states + i) * headDim + c) * columns + n]!;
            want.push(sum);
          }
          const tile = t - ((t - first) % 64);
          for (let s = tile; s <= t; s++)
            for (let i = 0; i < states; i++)
              for (let c = 0; c < headDim; c++) {
                let log = 0;
                for (let u = s + 1; u <= t; u++) log += rate(u, i, c);
                inner[(t * heads + head) * 64 + s - tile]! +=
                  gamma[i]! * query[c]! * k.numbers[s * headDim + c]! * Math.exp(log);
              }
        }
      }
      first += count;
    }

    const [qs, ks, vs] = [q, k, v].map(({ words }) => runner.buffer(words)) as [GPUBuffer, GPUBuffer, GPUBuffer];
    const decay = runner.buffer(new Float32Array(tokens * gates));
    const { tiles, longs, chunks: count } = runner.view;
    const chunks = runner.buffer(new Float32Array(count * chunkWidth(shape)));
    const starts = runner.buffer(new Uint32Array((count * chunkWidth(shape)) / 2));
    const store = runner.buffer(state);
    const sums = runner.buffer(new Float32Array(tokens * heads * columns));
    const rates = [runner.buffer(logits), decay];
    await runner.run(cumulate({ ...shape, type: 'f32' }, chunkTokens), rates, [Math.ceil(gates / 64), tiles, 1]);
    await runner.run(chunkStates(shape), [ks, vs, decay, chunks], [tiles, kvHeads, statesGroups(shape)]);
    const scan = [decay, chunks, starts, store];
    await runner.run(scanChunks(shape, false), scan, [longs, states * kvHeads, scanGroups(shape)]);
    const within = form.gate === 'vector' ? [runner.buffer(new Float32Array(inner.length))] : [];
    for (const scores of within) {
      const buffers = [qs, ks, decay, runner.buffer(mix), scores];
      await runner.run(scoreTiles(shape, false), buffers, [tiles, heads, 1]);
      const got = new Float32Array(await runner.read(scores), 0, inner.length).map((a, i) => (inner[i] === 0 ? 0 : a));
      expect(ratio(got, inner)).toBeLessThan(1e-3);
    }
    const outputs = chunkOutputs(shape, false);
    await runner.run(outputs, [qs, ks, vs, decay, runner.buffer(mix), starts, ...within, sums], [tiles, heads, 1]);
    const all = new Float32Array(await runner.read(sums), 0, tokens * heads * columns);
    const short = [330, 334].map((token) => token * heads * columns) as [number, number];
    expect(ratio([...all.subarray(0, short[0]), ...all.subarray(short[1])], want)).toBeLessThan(1e-3);
    const gotState = new Float32Array(await runner.read(store), 0, state.length);
    expect(ratio(gotState, wantState)).toBeLessThan(5e-4);
  });
});

/** Cosines and sines of a rope, as rope.ts has them. */
function ropeTable({ frequencies }: Rope, positions: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: positions * frequencies.length * 2 }, (_, i) => {
    const angle = Math.floor(i / (2 * frequencies.length)) * frequencies[Math.floor(i / 2) % frequencies.length]!;
    return i % 2 === 0 ? Math.cos(angle) : Math.sin(angle);
  });
}

/** A head turned by its position; by a negative one turned back. */
function turned(x: Float32Array, { rotaryDim, frequencies }: Rope, position: number): number[] {
  const half = rotaryDim / 2;
  return [...x].map((own, c) => {
    if (c >= rotaryDim) return own;
    const angle = position * frequencies[c % half]!;
    return own * Math.cos(angle) + (c < half ? -x[c + half]! : x[c - half]!) * Math.sin(angle);
  });
}

/** softmax(scale q K^T) V over the first `count` tokens of a cache that begins at `cache`. */
function attend(
  q: Float32Array,
  count: number,
  k: Float32Array,
  v: Float32Array,
  cache: number,
  scale: number,
): number[] {
  const width = q.length;
  const tokens = [...Array(count).keys()];
  const scores = tokens.map((t) => q.reduce((sum, x, c) => sum + x * k[cache + t * width + c]!, 0) * scale);
  const top = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - top));
  const total = weights.reduce((a, b) => a + b, 0);
  return [...q].map((_, c) => tokens.reduce((sum, t) => sum + weights[t]! * v[cache + t * width + c]!, 0) / total);
}
