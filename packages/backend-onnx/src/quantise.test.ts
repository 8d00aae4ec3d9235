import { type Device, f32, fromFloat16, type LayerGraph, toFloat16, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { onnxBackend } from './index.js';

const [width, out] = [96, 40];

/** In [-1, 1), the same at every call. */
function numbers(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 31;
  });
}

const matrix = numbers(out * width, 7).map((x, at) => (at < 32 ? 0 : at % 33 === 5 ? 3 * x : x)); // a block of zeros, some that stand out

/** What Q8_0 and Q4_0 of llama.cpp keep of a matrix, block by block. */
function kept(format: string): number[] {
  const blocks = Array.from({ length: matrix.length / 32 }, (_, block) => [
    ...matrix.subarray(32 * block, 32 * block + 32),
  ]);
  return blocks.flatMap((block) => {
    const peak = block.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most));
    const scale = fromFloat16(toFloat16(Float32Array.of(format === 'q8' ? Math.abs(peak) / 127 : peak / -8)))[0]!;
    const [least, most] = format === 'q8' ? [-128, 127] : [-8, 7];
    return block.map((x) => scale * (scale === 0 ? 0 : Math.min(Math.max(Math.round(x / scale), least!), most!)));
  });
}

const graph: LayerGraph = {
  name: 'linear',
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'linear', x: 0, weight: 'w' },
    { op: 'output', name: 'y', x: 1 },
  ],
  states: [],
};
const weights: WeightSource = {
  spec: () => ({ storage: 'f32', shape: [out, width] }),
  read: async (_, as) =>
    as === 'f32' ? f32([out, width], matrix.slice()) : { dtype: 'f16', shape: [out, width], data: toFloat16(matrix) },
};

async function product(device: Device, x: Float32Array): Promise<number[]> {
  const tokens = x.length / width;
  using layer = await device.compile(graph, weights);
  using input = device.upload(f32([tokens, width], x));
  using step = device.beginStep(
    { ids: new Int32Array(tokens), rows: [{ slot: 0, past: 0, count: tokens }] },
    { x: input },
  );
  step.run(layer, {});
  await step.submit();
  return [...(await device.download(step.value('y'))).data].map(Number);
}

describe.each(['c-api', 'node'])('matrices in blocks, binding %s', (binding) => {
  it.each(['q8', 'q4'])('%s: the product is the one with the matrix that the definition keeps', async (format) => {
    await using device = await onnxBackend.open({ threads: 1, extra: { binding, weights: format } });
    const held = kept(format);
    for (const tokens of [1, 7]) {
      const x = numbers(tokens * width, 3);
      const got = await product(device, x);
      for (let token = 0; token < tokens; token++)
        for (let row = 0; row < out; row++) {
          let want = 0;
          for (let at = 0; at < width; at++) want += x[token * width + at]! * held[row * width + at]!;
          expect(Math.abs(got[token * out + row]! - want)).toBeLessThan(2e-5);
        }
    }
  });

  it('they take less memory, and other matrices stay as they are', async () => {
    const bytes: number[] = [];
    for (const extra of [{ binding }, { binding, weights: 'q8' }, { binding, weights: 'q4' }]) {
      await using device = await onnxBackend.open({ threads: 1, extra });
      using _ = await device.compile(graph, weights);
      bytes.push(device.memory().bytes);
    }
    const scales = 4 * (matrix.length / 32); // float32 on the CPU
    expect(bytes).toEqual([4 * matrix.length, matrix.length + scales, matrix.length / 2 + scales]);
  });
});

it('an unknown type of matrices is an obstacle', async () => {
  expect(await onnxBackend.obstacles({ extra: { weights: 'q3' } })).toEqual([
    'extra.weights must be f32, q8 or q4, not q3',
  ]);
});
