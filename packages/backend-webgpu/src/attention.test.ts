import { referenceBackend } from '@dsla/reference';
import { type Device, f32, kvState, type LayerGraph, type Row, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { webgpuBackend } from './index.js';
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
    await using device = await webgpuBackend.open({ extra: { software: 'allow', checks: 'off' } });
    await using reference = await referenceBackend.open();
    const [got, want] = [await play(device, shape, steps), await play(reference, shape, steps)];
    expect(got.length).toBe(want.length);
    const square = (xs: readonly number[]) => xs.reduce((sum, x) => sum + x * x, 0);
    const error = square(got.map((x, i) => x - want[i]!));
    expect(Math.sqrt(error / square(want))).toBeLessThan(1e-5);
  });
});
