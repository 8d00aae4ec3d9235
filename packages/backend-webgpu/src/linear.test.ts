import { type Device, f32, type LayerGraph, type WeightSource } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { webgpuBackend } from './index.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

// The conformance suite's products are narrow; these are wide enough for the kernels of vectors and of tiles.
describe.skipIf(obstacle)(`wide products${obstacle ? ` (${obstacle})` : ''}`, () => {
  let device: Device;
  beforeAll(async () => {
    device = await webgpuBackend.open({ extra: { software: 'allow' } });
  });
  afterAll(async () => await device[Symbol.asyncDispose]());

  const wave = (length: number, seed: number) =>
    Float32Array.from({ length }, (_, i) => Math.sin(seed + 12.9898 * i) * Math.cos(0.37 * i * seed));

  /** y[t, o] = b[o] + sum_k x[t, k] w[o, k], in float64. */
  function product(x: Float32Array, w: Float32Array, bias: Float32Array, width: number): number[] {
    const y: number[] = [];
    for (let t = 0; t * width < x.length; t++) {
      for (let o = 0; o < bias.length; o++) {
        let sum = bias[o]!;
        for (let k = 0; k < width; k++) sum += x[t * width + k]! * w[o * width + k]!;
        y.push(sum);
      }
    }
    return y;
  }

  const shapes: [width: number, out: number][] = [
    [72, 100],
    [130, 67], // no multiple of 4: tiles only
    [64, 129],
    [312, 67], // its last round of loads is not whole
  ];
  it.each(shapes)('%i to %i, for 1 to 70 tokens', async (width, out) => {
    const weights: Record<string, { shape: number[]; data: Float32Array }> = {
      w: { shape: [out, width], data: wave(out * width, 1) },
      b: { shape: [out], data: wave(out, 2) },
    };
    const source: WeightSource = {
      spec: (name) => ({ storage: 'f32', shape: weights[name]!.shape }),
      read: async (name) => f32(weights[name]!.shape, weights[name]!.data),
    };
    const graph: LayerGraph = {
      name: `wide ${width} ${out}`,
      states: [],
      nodes: [
        { op: 'input', name: 'x', width },
        { op: 'linear', x: 0, weight: 'w', bias: 'b' },
        { op: 'output', name: 'y', x: 1 },
      ],
    };
    using layer = await device.compile(graph, source);
    for (const count of [1, 2, 3, 5, 8, 16, 17, 70]) {
      const data = wave(count * width, 3);
      using x = device.upload(f32([count, width], data));
      using step = device.beginStep({ ids: new Int32Array(count), rows: [{ slot: 0, past: 0, count }] }, { x });
      step.run(layer, {});
      await step.submit();
      const got = (await device.download(step.value('y'))).data;
      const want = product(data, weights.w!.data, weights.b!.data, width);
      const largest = Math.max(...want.map((y, i) => Math.abs(y - got[i]!)));
      expect(largest, `${count} tokens`).toBeLessThan(1e-4);
    }
  });
});
