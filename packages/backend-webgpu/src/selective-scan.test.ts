import { describe, expect, it } from 'vitest';
import { openRunner } from './kernel-runner.js';
import { type ScanShape, scanGroups, selectiveScan } from './kernels/selective-scan.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

describe.skipIf(obstacle)(`the selective scan${obstacle ? ` (${obstacle})` : ''}`, () => {
  // Entries of a state and where dt is cut: within a head and at no multiple of four; between heads, all in fours.
  it.each([
    [6, 4, 4],
    [6, 3, 3],
    [24, 8, 12],
    [160, 16, 80],
  ])('of %i channels with %i entries goes through rows of any length', async (channels, n, cut) => {
    const rows = [
      { slot: 1, past: 0, count: 600 },
      { slot: 0, past: 9, count: 3 },
      { slot: 2, past: 5, count: 70 },
    ];
    const heads = 2;
    const rest = channels - cut;
    const type = 'f32';
    // dt lies in two halves, the second before b, and is activated.
    const shape: ScanShape = {
      heads,
      channels,
      n,
      type,
      sources: [type, type, type],
      dt: {
        parts: [
          { width: cut, type, source: 0 },
          { width: rest, type, source: 1, stride: rest + heads * n },
        ],
        fn: 'softplus',
      },
      b: { parts: [{ width: heads * n, type, source: 1, stride: rest + heads * n, from: rest }] },
      c: { parts: [{ width: heads * n, type, source: 2 }] },
      gate: { fn: 'silu', type },
    };
    const tokens = 673;
    const numbers = (length: number, seed: number, from: number, to: number) =>
      Float32Array.from({ length }, (_, i) => from + (to - from) * (0.5 + 0.5 * Math.sin(seed + 12.9898 * i)));
    const x = numbers(tokens * channels, 1, -1, 1);
    const z = numbers(tokens * channels, 8, -3, 3);
    const before = numbers(tokens * channels, 2, -5, -1);
    const dt = before.map((value) => Math.log1p(Math.exp(value)));
    const [b, c] = [numbers(tokens * heads * n, 3, -1, 1), numbers(tokens * heads * n, 4, -1, 1)];
    const [logA, d] = [numbers(channels * n, 5, -4, 1), numbers(channels, 6, -1, 1)];
    const state = numbers(3 * channels * n, 7, -2, 2);

    const wantState = Float64Array.from(state);
    const want = new Float64Array(tokens * channels);
    let t = 0;
    for (const { slot, count } of rows)
      for (const end = t + count; t < end; t++)
        for (let channel = 0; channel < channels; channel++) {
          const at = t * channels + channel;
          const shared = (t * heads + Math.floor((channel * heads) / channels)) * n;
          want[at] = d[channel]! * x[at]!;
          for (let i = 0; i < n; i++) {
            const cell = (slot * channels + channel) * n + i;
            const keep = Math.exp(-dt[at]! * Math.exp(logA[channel * n + i]!));
            wantState[cell] = keep * wantState[cell]! + dt[at]! * x[at]! * b[shared + i]!;
            want[at]! += c[shared + i]! * wantState[cell]!;
          }
          want[at]! *= z[at]! / (1 + Math.exp(-z[at]!));
        }

    const runner = await openRunner(rows);
    const take = (from: Float32Array, width: number, first: number, last: number) =>
      Array.from({ length: tokens }, (_, at) => [...from.subarray(at * width + first, at * width + last)]);
    const [low, high, shared] = [
      take(before, channels, 0, cut),
      take(before, channels, cut, channels),
      take(b, heads * n, 0, heads * n),
    ];
    const second = high.map((own, at) => [...own, ...shared[at]!]);
    const sources = [Float32Array.from(low.flat()), Float32Array.from(second.flat()), c];
    const y = runner.buffer(new Float32Array(tokens * channels));
    const store = runner.buffer(state);
    const reading = [x, ...sources, logA, d, z].map((of) => runner.buffer(of));
    await runner.run(selectiveScan(shape), [...reading, y, store], [scanGroups(shape), rows.length, 1]);
    const read = async (buffer: GPUBuffer, length: number) => new Float32Array(await runner.read(buffer), 0, length);
    expect(ratio(await read(y, want.length), want)).toBeLessThan(1e-5);
    expect(ratio(await read(store, state.length), wantState)).toBeLessThan(1e-5);
  });
});

function ratio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let [error, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    error += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return Math.sqrt(error / size);
}
