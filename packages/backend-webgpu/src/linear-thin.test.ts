import { describe, expect, it } from 'vitest';
import { gatedProduct, type Halves, halves, ratio } from './kernel-numbers.js';
import { openRunner } from './kernel-runner.js';
import type { Element } from './kernels/kernel.js';
import { linearThin, thinGroups, thinShape } from './kernels/linear-thin.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

describe.skipIf(obstacle)(`products of some items, spelled out${obstacle ? ` (${obstacle})` : ''}`, () => {
  const cases: [items: number, type: Element, width: number, from: number, ahead: number, of?: number][] = [
    [9, 'f16', 256, 0, 1],
    [21, 'f32', 280, 0, 1],
    [30, 'f16', 768, 0, 1],
    [30, 'f16', 1288, 8, 4], // a part of wider items
    [30, 'f16', 328, 0, 1, 20000], // cut as if there were so many outputs
    [50, 'f32', 128, 0, 1],
  ];
  it.each(cases)(
    '%i items to %s of width %i, from %i, %i rounds ahead',
    async (count, type, width, from, ahead, of) => {
      const outs = [72, 40];
      const runner = await openRunner([{ slot: 0, past: 0, count }]);
      const stride = width + from;
      const x = halves(count * stride, 1);
      const products = outs.map((out, p) => ({
        out,
        w: halves(out * width, 2 + p),
        bias: p === 0 ? Float32Array.from({ length: out }, (_, o) => Math.cos(o)) : undefined,
        y: runner.buffer(new Float32Array(count * out).fill(3)),
        z: p === 1 ? Float32Array.from({ length: count * out }, (_, i) => Math.sin(i)) : undefined,
      }));
      const shape = { ...thinShape(count, of), ahead };
      // The first is added to what is there, the second to another value.
      const parts = products.map(({ out, bias, z }) => ({
        y: { width: out, type },
        bias: bias !== undefined,
        add: z ? ({ width: out, type: 'f32' } as const) : ('own' as const),
      }));
      const kernel = linearThin('token', parts, { width, type: 'f16', stride, from }, shape);
      const buffers = products.flatMap(({ w, bias, z, y }) =>
        [w.words, ...(bias ? [bias] : []), ...(z ? [z] : [])].map(runner.buffer).concat(y),
      );
      const groups = outs.reduce((sum, out) => sum + Math.ceil(out / shape.outputs), 0);
      await runner.run(kernel, [runner.buffer(x.words), ...buffers], [groups, 1, 1]);
      for (const { out, w, bias, y, z } of products) {
        // Halves are spelled out as float32 numbers, so that one y serves both types.
        const got = new Float32Array(await runner.read(y));
        let [error, size] = [0, 0];
        for (let t = 0; t < count; t++)
          for (let o = 0; o < out; o++) {
            let sum = (bias?.[o] ?? 0) + (z?.[t * out + o] ?? 3);
            for (let k = 0; k < width; k++) sum += x.numbers[t * stride + from + k]! * w.numbers[o * width + k]!;
            error += (got[t * out + o]! - sum) ** 2;
            size += sum ** 2;
          }
        expect(Math.sqrt(error / size)).toBeLessThan(1e-5);
      }
    },
  );

  it.each([
    [9, 256, 72],
    [30, 328, 40],
    [30, 128, 100, 20000], // cut as if there were so many outputs
    [50, 136, 72],
  ])('%i gated items of width %i to %i', async (count, width, out, of?: number) => {
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const [x, w, u] = [count, out, out].map((rows, seed) => halves(rows * width, 1 + seed)) as [Halves, Halves, Halves];
    const y = runner.buffer(new Float32Array(count * out));
    const part = { y: { width: out, type: 'f32' }, bias: false, gate: 'silu' } as const;
    const shape = thinShape(count, of);
    const buffers = [x, w, u].map(({ words }) => runner.buffer(words));
    const kernel = linearThin('token', [part], { width, type: 'f16' }, shape);
    await runner.run(kernel, [...buffers, y], [thinGroups([part], shape), 1, 1]);
    const got = new Float32Array(await runner.read(y));
    expect(ratio(got, gatedProduct(x, w, u, width))).toBeLessThan(1e-5);
  });
});
