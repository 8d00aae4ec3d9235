import { referenceBackend } from '@dsla/reference';
import { type Device, f32, fromFloat16, type LayerGraph, toFloat16, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { webgpuBackend } from './index.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

// Wide enough for the kernels of vectors, which take over norms and additions, and read quantised matrices.
const [width, hidden] = [128, 192];

const shapes: Readonly<Record<string, readonly number[]>> = {
  o: [width, width],
  'o.bias': [width],
  norm: [width],
  gate: [hidden, width],
  up: [hidden, width],
  down: [width, hidden],
  'next.norm': [width],
  q: [width, width],
  k: [64, width],
  v: [64, width],
  'v.bias': [64],
  't.0': [64, 64],
  't.1': [64, 64],
  wide: [256, width],
  narrow: [width, 256],
};

/** x + W o, its feed-forward block with the residual where x was, and the projections of the next layer. */
const graph: LayerGraph = {
  name: 'half a layer',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'input', name: 'o', width },
    { op: 'linear', x: 1, weight: 'o', bias: 'o.bias' },
    { op: 'add', a: 0, b: 2 },
    { op: 'rmsNorm', x: 3, weight: 'norm', eps: 1e-5 },
    { op: 'linear', x: 4, weight: 'gate' },
    { op: 'activate', x: 5, fn: 'silu' },
    { op: 'linear', x: 4, weight: 'up' },
    { op: 'mul', a: 6, b: 7 },
    { op: 'linear', x: 8, weight: 'down' },
    { op: 'add', a: 3, b: 9 },
    { op: 'output', name: 'x', x: 10 },
    { op: 'rmsNorm', x: 10, weight: 'next.norm', eps: 1e-5 },
    { op: 'linear', x: 12, weight: 'q' },
    { op: 'linear', x: 12, weight: 'k' },
    { op: 'linear', x: 12, weight: 'v', bias: 'v.bias' },
    { op: 'output', name: 'q', x: 13 },
    { op: 'output', name: 'k', x: 14 },
    { op: 'output', name: 'v', x: 15 },
  ],
};

/** Adds to x where it lies, and norms it for a product and for itself. */
const inPlace: LayerGraph = {
  name: 'in place',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'rmsNorm', x: 0, weight: 'norm', eps: 1e-5 },
    { op: 'linear', x: 1, weight: 'q' },
    { op: 'add', a: 0, b: 2 },
    { op: 'output', name: 'x', x: 3 },
    { op: 'rmsNorm', x: 3, weight: 'next.norm', eps: 1e-5 },
    { op: 'linear', x: 5, weight: 'k' },
    { op: 'output', name: 'k', x: 6 },
    { op: 'output', name: 'q', x: 5 },
  ],
};

/** Products and joints of parts of values, and activations of what else is read. */
const parts: LayerGraph = {
  name: 'parts',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'linear', x: 0, weight: 'gate' },
    { op: 'slice', x: 1, from: 0, to: 128 },
    { op: 'slice', x: 1, from: 64, to: 192 },
    { op: 'linear', x: 2, weight: 'o', bias: 'o.bias' },
    { op: 'linear', x: 3, weight: 'q' },
    { op: 'slice', x: 4, from: 8, to: 24 },
    { op: 'slice', x: 5, from: 37, to: 56 },
    { op: 'concat', a: 6, b: 7 },
    { op: 'concat', a: 4, b: 5 },
    { op: 'activate', x: 9, fn: 'softplus' },
    { op: 'activate', x: 1, fn: 'silu' },
    { op: 'linear', x: 0, weight: 'up' },
    { op: 'mul', a: 12, b: 11 },
    { op: 'output', name: 'joint', x: 8 },
    { op: 'output', name: 'steps', x: 10 },
    { op: 'output', name: 'gated', x: 13 },
  ],
};

/** Two products in turn of each of two parts: the first ones can be done together, and so can the second. */
const turns: LayerGraph = {
  name: 'parts in turn',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'linear', x: 0, weight: 'gate' },
    { op: 'slice', x: 1, from: 0, to: 128 },
    { op: 'linear', x: 2, weight: 'o', bias: 'o.bias' },
    { op: 'slice', x: 3, from: 0, to: 64 },
    { op: 'linear', x: 4, weight: 't.0' },
    { op: 'slice', x: 1, from: 64, to: 192 },
    { op: 'linear', x: 6, weight: 'q' },
    { op: 'slice', x: 7, from: 64, to: 128 },
    { op: 'linear', x: 8, weight: 't.1', bias: 'v.bias' },
    { op: 'concat', a: 5, b: 9 },
    { op: 'output', name: 'y', x: 10 },
  ],
};

/** Rows of whole loads of scales. */
const whole: LayerGraph = {
  name: 'whole loads',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'linear', x: 0, weight: 'wide' },
    { op: 'linear', x: 1, weight: 'narrow' },
    { op: 'add', a: 0, b: 2 },
    { op: 'output', name: 'y', x: 3 },
  ],
};

const single: LayerGraph = {
  name: 'a product',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width },
    { op: 'linear', x: 0, weight: 'o' },
    { op: 'output', name: 'y', x: 1 },
  ],
};

type Rounding = (values: Float32Array) => Float32Array;

const wave = (length: number, seed: number) =>
  Float32Array.from({ length }, (_, i) => Math.sin(seed + 12.9898 * i) * Math.cos(0.37 * i * seed) * 0.3);

/** `round`: what the matrices become on a device. */
function weights(round: Rounding): WeightSource {
  const names = Object.keys(shapes);
  return {
    spec: (name) => ({ storage: 'f32', shape: shapes[name]! }),
    read: async (name) => {
      const shape = shapes[name]!;
      const data = wave(
        shape.reduce((a, b) => a * b),
        1 + names.indexOf(name),
      );
      return f32(shape, shape.length > 1 ? round(data) : data);
    },
  };
}

/** Blocks of 32 numbers: a float16 scale and integers from `least` to `most`. */
function blocks(least: number, most: number, scaleOf: (block: Float32Array) => number): Rounding {
  return (values) => {
    const rounded = new Float32Array(values.length);
    for (let at = 0; at < values.length; at += 32) {
      const [scale] = fromFloat16(toFloat16(Float32Array.of(scaleOf(values.subarray(at, at + 32))))) as unknown as [
        number,
      ];
      for (let i = at; i < at + 32; i++)
        rounded[i] = scale * Math.min(Math.max(Math.round(values[i]! / scale), least), most);
    }
    return rounded;
  };
}

const largest = (block: Float32Array) => block.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
const roundings: Readonly<Record<string, Rounding>> = {
  f32: (values) => values,
  q8: blocks(-128, 127, (block) => Math.abs(largest(block)) / 127),
  q4: blocks(-8, 7, (block) => largest(block) / -8),
};

/** Values of steps of several lengths, end to end. */
async function play(device: Device, tape: LayerGraph, source: WeightSource): Promise<number[]> {
  using layer = await device.compile(tape, source);
  const got: number[] = [];
  for (const count of [1, 2, 3, 5, 8, 9, 33, 70]) {
    using x = device.upload(f32([count, width], wave(count * width, 40)));
    using o = device.upload(f32([count, width], wave(count * width, 41)));
    using step = device.beginStep({ ids: new Int32Array(count), rows: [{ slot: 0, past: 0, count }] }, { x, o });
    step.run(layer, {});
    await step.submit();
    for (const node of tape.nodes)
      if (node.op === 'output') got.push(...(await device.download(step.value(node.name))).data);
  }
  return got;
}

describe.skipIf(obstacle)(`products with their neighbours${obstacle ? ` (${obstacle})` : ''}`, () => {
  it.each([
    ...Object.keys(roundings).map((format) => [graph.name, format, graph] as const),
    ...Object.keys(roundings).map((format) => [parts.name, format, parts] as const),
    ...Object.keys(roundings).map((format) => [whole.name, format, whole] as const),
    [inPlace.name, 'f32', inPlace] as const,
    [turns.name, 'f32', turns] as const,
  ])('%s, %s', async (_, format, tape) => {
    await using device = await webgpuBackend.open({ extra: { software: 'allow', weights: format } });
    await using reference = await referenceBackend.open();
    const got = await play(device, tape, weights(roundings.f32!));
    const want = await play(reference, tape, weights(roundings[format]!));
    expect(got.length).toBe(want.length);
    const square = (xs: readonly number[]) => xs.reduce((sum, x) => sum + x * x, 0);
    const error = square(got.map((x, i) => x - want[i]!));
    // Quantised products take 8 bits of x: a rounding of up to 1/254 of the largest in 32 numbers.
    expect(Math.sqrt(error / square(want))).toBeLessThan(format === 'f32' ? 2e-6 : 6e-3);
  });

  it('of quantised matrices takes their bytes', async () => {
    const bytes = async (format: string) => {
      await using device = await webgpuBackend.open({
        extra: { software: 'allow', weights: format },
      });
      using _ = await device.compile(single, weights(roundings.f32!));
      return device.memory().bytes;
    };
    const numbers = width * width;
    expect((await bytes('f32')) - (await bytes('q8'))).toBe(numbers * (4 - 34 / 32));
    expect((await bytes('f32')) - (await bytes('q4'))).toBe(numbers * (4 - 18 / 32));
  });

  it('of an unknown format are refused', async () => {
    await expect(webgpuBackend.open({ extra: { software: 'allow', weights: 'q5' } })).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringContaining('q8 or q4'),
    });
  });
});
