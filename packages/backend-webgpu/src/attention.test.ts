import { referenceBackend } from '@dsla/reference';
import {
  type Device,
  f32,
  fromFloat16,
  kvState,
  type LayerGraph,
  type Row,
  toFloat16,
  type WeightSource,
} from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { webgpuBackend } from './index.js';
import { openRunner } from './kernel-runner.js';
import { headsTogether, splitAttention, splitGroups } from './kernels/split-attention.js';
import { partsWidth } from './kernels/split-join.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

const noWeights: WeightSource = {
  spec: (name) => {
    throw new Error(name);
  },
  read: async (name) => {
    throw new Error(name);
  },
};

interface Shape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Outputs of steps of random q, k, v, end to end. */
async function play(device: Device, shape: Shape, steps: readonly (readonly Row[])[]): Promise<number[]> {
  const { heads, kvHeads, headDim } = shape;
  const state = kvState('kv', shape);
  const frequencies = Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim));
  const graph: LayerGraph = {
    name: 'attention',
    states: [state],
    nodes: [
      { op: 'input', name: 'q', width: heads * headDim },
      { op: 'input', name: 'k', width: kvHeads * headDim },
      { op: 'input', name: 'v', width: kvHeads * headDim },
      {
        op: 'softmaxAttention',
        q: 0,
        k: 1,
        v: 2,
        state: 'kv',
        ...shape,
        scale: headDim ** -0.5,
        rope: { frequencies, rotaryDim: headDim },
      },
      { op: 'output', name: 'o', x: 3 },
    ],
  };
  using layer = await device.compile(graph, noWeights);
  using kv = device.createState(state, 2, 320);
  const outputs: number[] = [];
  for (const [index, rows] of steps.entries()) {
    const tokens = rows.reduce((sum, { count }) => sum + count, 0);
    const wave = (width: number, seed: number) =>
      device.upload(
        f32(
          [tokens, width],
          Float32Array.from({ length: tokens * width }, (_, i) => Math.sin(seed * 7.7 + index + i * 12.9898) * 2),
        ),
      );
    using q = wave(heads * headDim, 1);
    using k = wave(kvHeads * headDim, 2);
    using v = wave(kvHeads * headDim, 3);
    using step = device.beginStep({ ids: new Int32Array(tokens), rows }, { q, k, v });
    step.run(layer, { kv });
    await step.submit();
    outputs.push(...(await device.download(step.value('o'))).data);
  }
  return outputs;
}

// Long enough that the keys of a single token are cut into several splits, which no case of the conformance suite is.
const steps: Row[][] = [
  [
    { slot: 1, past: 0, count: 150 },
    { slot: 0, past: 0, count: 3 },
  ],
  [{ slot: 1, past: 150, count: 130 }],
  [
    { slot: 0, past: 3, count: 1 },
    { slot: 1, past: 280, count: 8 },
  ],
  [{ slot: 1, past: 288, count: 20 }],
  [{ slot: 1, past: 308, count: 1 }],
];

const shapes: Shape[] = [
  { heads: 4, kvHeads: 1, headDim: 64 },
  { heads: 3, kvHeads: 1, headDim: 80 },
  { heads: 1, kvHeads: 1, headDim: 128 },
];

describe.skipIf(obstacle)(`attention over long caches${obstacle ? ` (${obstacle})` : ''}`, () => {
  it.each(shapes)('%o', async (shape) => {
    await using device = await webgpuBackend.open({ extra: { software: 'allow' } });
    await using reference = await referenceBackend.open();
    const [got, want] = [await play(device, shape, steps), await play(reference, shape, steps)];
    expect(got.length).toBe(want.length);
    const square = (xs: readonly number[]) => xs.reduce((sum, x) => sum + x * x, 0);
    const error = square(got.map((x, i) => x - want[i]!));
    expect(Math.sqrt(error / square(want))).toBeLessThan(1e-5);
  });
});

describe.skipIf(obstacle)(`split attention over halves${obstacle ? ` (${obstacle})` : ''}`, () => {
  const halves = (length: number, seed: number) =>
    fromFloat16(toFloat16(Float32Array.from({ length }, (_, i) => 2 * Math.sin(seed + 12.9898 * i))));
  const packed = (numbers: Float32Array) => new Uint32Array(toFloat16(numbers).slice().buffer);

  it.each([
    { heads: 4, kvHeads: 2, headDim: 64, rotaryDim: 64, past: 130, key: 'f16' },
    { heads: 2, kvHeads: 2, headDim: 80, rotaryDim: 80, past: 130, key: 'f32' },
    { heads: 1, kvHeads: 1, headDim: 136, rotaryDim: 48, past: 1500, key: 'f32' },
    { heads: 4, kvHeads: 2, headDim: 32, rotaryDim: 32, past: 8200, key: 'f16' }, // splits that are cut in two
  ] as const)('%o', async ({ heads, kvHeads, headDim, rotaryDim, past, key }) => {
    const rows: Row[] = [
      { slot: 1, past, count: 3 },
      { slot: 0, past: 0, count: 2 },
    ];
    const [tokens, capacity] = [5, past + 10];
    const half = rotaryDim / 2;
    const rope = { rotaryDim, frequencies: Array.from({ length: half }, (_, i) => 0.7 ** i) };
    const shape = { heads, kvHeads, headDim, scale: headDim ** -0.5, rope };
    const [q, k, v] = [heads, kvHeads, kvHeads].map((of, n) => halves(tokens * of * headDim, n)) as [
      Float32Array<ArrayBuffer>,
      Float32Array<ArrayBuffer>,
      Float32Array<ArrayBuffer>,
    ];
    if (key === 'f32') for (const x of [q, k]) x.set(x.map((a) => 1.0003 * a)); // no halves any more
    const [keys, values] = [halves(2 * kvHeads * capacity * headDim, 7), halves(2 * kvHeads * capacity * headDim, 8)];
    const turn = (x: Float32Array, base: number, c: number, position: number): number => {
      if (c >= rotaryDim) return x[base + c]!;
      const angle = position * rope.frequencies[c % half]!;
      const other = x[base + ((c + half) % rotaryDim)]!;
      return x[base + c]! * Math.cos(angle) + (c < half ? -other : other) * Math.sin(angle);
    };
    const table = new Float32Array(capacity * rotaryDim);
    for (let i = 0; i < table.length / 2; i++) {
      const angle = Math.floor(i / half) * rope.frequencies[i % half]!;
      table.set([Math.cos(angle), Math.sin(angle)], 2 * i);
    }
    const runner = await openRunner(rows);
    const [cacheK, cacheV] = [runner.buffer(packed(keys)), runner.buffer(packed(values))];
    const parts = runner.buffer(new Uint32Array(runner.view.splits * partsWidth(shape, headsTogether(shape))));
    const y = runner.buffer(new Uint32Array((tokens * heads * headDim) / 2));
    const step = [...(key === 'f32' ? [q, k] : [packed(q), packed(k)]), packed(v)];
    const inputs = [...step, table, new Uint32Array([capacity])].map((data) => runner.buffer(data));
    const groups = splitGroups(shape);
    const kernel = splitAttention(shape, 'f16', { q: key, k: key }, 4);
    const run = () => runner.run(kernel, [...inputs, cacheK, cacheV, parts, y], [runner.view.splits, groups, 1]);
    await run();
    const bits = new Uint16Array(await runner.read(y));
    const got = fromFloat16(bits);
    // Whoever of a token comes last, it joins the same parts in the same order, and leaves zeros.
    for (let n = 0; n < 10; n++) {
      await run();
      expect(new Uint16Array(await runner.read(y))).toEqual(bits);
      expect(new Uint32Array(await runner.read(parts)).some((word) => word !== 0)).toBe(false);
    }

    // The cache takes the step's tokens; then every query sees what is not after it.
    let start = 0;
    for (const { slot, past, count } of rows) {
      for (let t = 0; t < count; t++)
        for (let h = 0; h < kvHeads; h++)
          for (let c = 0; c < headDim; c++) {
            const from = ((start + t) * kvHeads + h) * headDim;
            const to = ((slot * kvHeads + h) * capacity + past + t) * headDim + c;
            keys[to] = fromFloat16(toFloat16(Float32Array.of(turn(k, from, c, past + t))))[0]!;
            values[to] = v[from + c]!;
          }
      start += count;
    }
    const near = (got: ArrayLike<number>, want: ArrayLike<number>) => {
      for (let i = 0; i < want.length; i++)
        if (!(Math.abs(got[i]! - want[i]!) <= 2e-3)) expect(got[i], `number ${i}`).toBe(want[i]);
    };
    near(fromFloat16(new Uint16Array(await runner.read(cacheK))), keys);
    near(fromFloat16(new Uint16Array(await runner.read(cacheV))), values);
    const want: number[] = [];
    start = 0;
    for (const { slot, past, count } of rows) {
      for (let t = 0; t < count; t++)
        for (let h = 0; h < heads; h++) {
          const cache = (slot * kvHeads + Math.floor((h * kvHeads) / heads)) * capacity;
          const from = ((start + t) * heads + h) * headDim;
          const weights = Array.from({ length: past + t + 1 }, (_, n) => {
            let score = 0;
            for (let c = 0; c < headDim; c++) score += turn(q, from, c, past + t) * keys[(cache + n) * headDim + c]!;
            return Math.exp(score * shape.scale);
          });
          const total = weights.reduce((a, b) => a + b);
          for (let c = 0; c < headDim; c++)
            want.push(weights.reduce((sum, weight, n) => sum + weight * values[(cache + n) * headDim + c]!, 0) / total);
        }
      start += count;
    }
    near(got, want);
  });
});
