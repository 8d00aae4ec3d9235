import { elementCount, fromFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { parseConfig } from './config.js';
import { describe as describeModel } from './describe.js';
import { randomWeights, shapes } from './synthetic.js';

const parameters = (shape: unknown): number => {
  const { weights } = describeModel(parseConfig(shape));
  const parts = new Map(Object.values(weights).map((ref) => [JSON.stringify([ref.tensors, ref.index, ref.rows]), ref]));
  return [...parts.values()].reduce((sum, { shape: of }) => sum + elementCount(of), 0);
};

describe('shapes', () => {
  // Touvron et al., arXiv 2307.09288; Glorioso et al., arXiv 2405.16712.
  it('have the sizes that their papers give', () => {
    expect(parameters(shapes['llama2-7b'])).toBe(6_738_415_616);
    expect(Math.round(parameters(shapes['zamba-7b']) / 1e9)).toBe(7);
  });
});

describe('random weights', () => {
  const small = {
    ...shapes['llama2-7b'],
    hidden_size: 128,
    intermediate_size: 352,
    num_hidden_layers: 1,
    vocab_size: 500,
  };
  const model = describeModel(parseConfig({ ...small, num_attention_heads: 4, num_key_value_heads: 4 }), {
    mixers: { linear: { kind: 'dual' } },
  });
  const source = randomWeights(model);

  it('keep the size of activations, and vectors near 1', async () => {
    for (const [name, { shape, initial }] of Object.entries(model.weights)) {
      const { data } = await source.read(name, 'f32');
      expect(data.length).toBe(elementCount(shape));
      if (initial) continue;
      const [middle, variance] = shape.length > 1 ? [0, 1 / shape.at(-1)!] : [1, 0.01 / 3];
      const mean = (data as Float32Array).reduce((sum, x) => sum + x, 0) / data.length;
      const found = (data as Float32Array).reduce((sum, x) => sum + (x - mean) ** 2, 0) / data.length;
      expect(mean, name).toBeCloseTo(middle, 1);
      expect(found / variance, name).toBeGreaterThan(0.7);
      expect(found / variance, name).toBeLessThan(1.4);
    }
  });

  it('are the same in float16, up to its precision, and at every read', async () => {
    const known = Object.entries(model.weights).find(([, { initial, shape }]) => !initial && shape.length > 1)![0];
    const full = (await source.read(known, 'f32')).data as Float32Array;
    const half = fromFloat16((await source.read(known, 'f16')).data as Uint16Array);
    expect(Math.max(...full.map((x, index) => Math.abs(x - half[index]!)))).toBeLessThan(1e-4);
    expect((await source.read(known, 'f32')).data).toEqual(full);
  });

  it('are not correlated between tensors, nor between the rows of one', async () => {
    const correlation = (a: Float32Array, b: Float32Array): number => {
      const product = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, index) => sum + value * y[index]!, 0);
      return product(a, b) / Math.sqrt(product(a, a) * product(b, b));
    };
    const matrices = Object.keys(model.weights).filter(
      (name) => model.weights[name]!.shape.length > 1 && !model.weights[name]!.initial,
    );
    expect(matrices.length).toBeGreaterThan(6);
    const read = matrices.map(async (name) => (await source.read(name, 'f32')).data as Float32Array);
    const data = await Promise.all(read);
    for (const [index, one] of data.entries())
      for (const other of data.slice(0, index))
        expect(Math.abs(correlation(one.subarray(0, 16384), other.subarray(0, 16384)))).toBeLessThan(0.05);
    // Wide enough that a tensor reads all numbers more than once.
    const wide = randomWeights({
      ...model,
      weights: { wide: { ...model.weights[matrices[0]!]!, shape: [600, 4096] } },
    });
    const rows = (await wide.read('wide', 'f32')).data as Float32Array;
    const row = (index: number) => rows.subarray(index * 4096, (index + 1) * 4096);
    for (const other of [1, 2, 255, 256, 257, 512, 599])
      expect(Math.abs(correlation(row(0), row(other))), String(other)).toBeLessThan(0.1);
  });

  it('start mixers untuned', async () => {
    const [name, { initial }] = Object.entries(model.weights).find(([, ref]) => ref.initial)!;
    expect((await source.read(name, 'f32')).data).toEqual(initial!());
  });

  it('refuse a name that the model does not have', async () => {
    expect(() => source.spec('layers.9.q')).toThrow(/no such weight/);
  });
});
