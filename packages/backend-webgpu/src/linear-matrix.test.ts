import { fromFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { gatedProduct, type Halves, halves, ratio } from './kernel-numbers.js';
import { openRunner } from './kernel-runner.js';
import type { Element } from './kernels/kernel.js';
import { linearMatrix, type MatrixShape, matrixGroups, matrixShape, smallShape } from './kernels/linear-matrix.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

describe.skipIf(obstacle)(`products of many items, spelled out${obstacle ? ` (${obstacle})` : ''}`, () => {
  const small: MatrixShape = { ...matrixShape, items: 32, outputs: 64, subgroupItems: 16, subgroupOutputs: 32 };
  interface Variant {
    readonly shape: MatrixShape;
    readonly type: Element;
    readonly width?: number;
    /** x is a part of wider items, from here on. */
    readonly from?: number;
    readonly out?: number;
    /** What the product is added to: another value of a type, or y. */
    readonly add?: Element | 'own';
  }
  const variants: Variant[] = [
    { shape: small, type: 'f16' },
    { shape: small, type: 'f32', add: 'f16' },
    { shape: small, type: 'f16', width: 96, add: 'own' },
    { shape: small, type: 'f16', from: 16, add: 'f32' },
    { shape: small, type: 'f32', out: 98, add: 'f32' },
    { shape: { ...small, ahead: 1 }, type: 'f16', width: 128 },
    { shape: { ...small, ahead: 1 }, type: 'f16' },
    { shape: { ...small, subgroupItems: 32, depth: 64, ahead: 1 }, type: 'f32', add: 'own' },
    { shape: smallShape, type: 'f16', width: 64 },
    { shape: smallShape, type: 'f32', width: 64, add: 'f32' },
  ];
  it.each(variants)('products %o', async ({ shape, type, width = 88, from = 0, out = 104, add }) => {
    const count = 37;
    const stride = width + 2 * from;
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const [x, w] = [halves(count * stride, 1), halves(out * width, 2)];
    const bias = Float32Array.from({ length: out }, (_, o) => Math.cos(o));
    const z = halves(count * out, 3);
    const held = (of: Element) => (of === 'f16' ? z.words : z.numbers.slice(0, count * out));
    const y = runner.buffer(add === 'own' ? held(type) : new Float32Array(count * out));
    const part = { bias: true, add: add && add !== 'own' ? { width: out, type: add } : add };
    const kernel = linearMatrix('token', { width: out, type }, { width, type: 'f16', stride, from }, part, shape);
    const added = add && add !== 'own' ? [runner.buffer(held(add))] : [];
    const buffers = [runner.buffer(x.words), runner.buffer(w.words), runner.buffer(bias), ...added, y];
    await runner.run(kernel, buffers, [Math.ceil(out / shape.outputs), Math.ceil(count / shape.items), 1]);
    const want: number[] = [];
    for (let t = 0; t < count; t++)
      for (let o = 0; o < out; o++) {
        let sum = bias[o]! + (add ? z.numbers[t * out + o]! : 0);
        for (let k = 0; k < width; k++) sum += x.numbers[t * stride + from + k]! * w.numbers[o * width + k]!;
        want.push(sum);
      }
    const read = await runner.read(y);
    const got = type === 'f16' ? fromFloat16(new Uint16Array(read)) : new Float32Array(read);
    expect(ratio(got.subarray(0, want.length), want)).toBeLessThan(type === 'f16' ? 5e-4 : 1e-5);
  });

  const gated: (Pick<Variant, 'shape' | 'type' | 'width'> & { readonly out: number })[] = [
    { shape: { ...small, subgroupItems: 32, depth: 64, ahead: 1 }, type: 'f16', out: 104 },
    { shape: smallShape, type: 'f32', width: 64, out: 98 },
    { shape: matrixShape, type: 'f32', width: 64, out: 72 },
  ];
  it.each(gated)('gated products %o', async ({ shape, type, width = 88, out }) => {
    const count = 37;
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const [x, w, u] = [count, out, out].map((rows, seed) => halves(rows * width, 1 + seed)) as [Halves, Halves, Halves];
    const y = runner.buffer(new Float32Array(count * out));
    const part = { bias: false, gate: 'silu' } as const;
    const kernel = linearMatrix('token', { width: out, type }, { width, type: 'f16' }, part, shape);
    const buffers = [x, w, u].map(({ words }) => runner.buffer(words));
    await runner.run(kernel, [...buffers, y], matrixGroups(count, 2 * out, shape));
    const want = gatedProduct(x, w, u, width);
    const read = await runner.read(y);
    const got = type === 'f16' ? fromFloat16(new Uint16Array(read)) : new Float32Array(read);
    expect(ratio(got.subarray(0, want.length), want)).toBeLessThan(type === 'f16' ? 3e-4 : 1e-6);
  });
});
