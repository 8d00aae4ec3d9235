import { fromFloat16, toFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { openRunner } from './kernel-runner.js';
import * as elementwise from './kernels/elementwise.js';
import type { Kernel } from './kernels/kernel.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();
const [width, count] = [24, 50];
const half = { width, type: 'f16' } as const;

const silu = (x: number): number => x / (1 + Math.exp(-x));
const kernels: [kernel: Kernel, value: (a: number, b: number, y: number) => number][] = [
  [elementwise.add('token', half, half, half), (a, b) => a + b],
  [elementwise.multiply('token', half, half, half), (a, b) => a * b],
  [elementwise.accumulate('token', half, half), (a, _, y) => y + a],
  [elementwise.activateMul('silu', 'token', half, half, half), (a, b) => silu(a) * b],
  [elementwise.activate('silu', 'token', half, half), silu],
  [elementwise.activate('softplus', 'token', half, half), (a) => Math.log1p(Math.exp(a))],
  [elementwise.activate('logSigmoid', 'token', half, half), (a) => -Math.log1p(Math.exp(-a))],
];

describe.skipIf(obstacle)(`eight numbers in float16 a thread${obstacle ? ` (${obstacle})` : ''}`, () => {
  it.each(kernels.map(([kernel, value]) => ({ name: kernel.name, kernel, value })))(
    '$name',
    async ({ kernel, value }) => {
      expect(elementwise.elementsAThread(half, half)).toBe(8);
      expect(elementwise.elementsAThread(half, { width, type: 'f32' })).toBe(1);
      expect(elementwise.elementsAThread({ width: 20, type: 'f16' })).toBe(1);
      const runner = await openRunner([{ slot: 0, past: 0, count }]);
      const [a, b, y] = [1, 2, 3].map((seed) =>
        toFloat16(Float32Array.from({ length: count * width }, (_, i) => 5 * Math.sin(seed + 12.9898 * i))),
      ) as [Uint16Array, Uint16Array, Uint16Array];
      const [as, bs, ys] = [a, b, y].map((halves) => runner.buffer(new Uint32Array(halves.slice().buffer))) as [
        GPUBuffer,
        GPUBuffer,
        GPUBuffer,
      ];
      const inputs = kernel.access.length === 3 ? [as, bs] : [as];
      await runner.run(kernel, [...inputs, ys], [Math.ceil((count * width) / 8 / elementwise.elementwiseSize), 1, 1]);
      const got = fromFloat16(new Uint16Array(await runner.read(ys))).subarray(0, count * width);
      const [an, bn, yn] = [a, b, y].map((halves) => fromFloat16(halves)) as [Float32Array, Float32Array, Float32Array];
      const want = [...an].map((x, i) => value(x, bn[i]!, yn[i]!));
      // Half a unit in the last place of a half, and the roundings of float32.
      const wrong = [...got].filter((x, i) => Math.abs(x - want[i]!) > Math.abs(want[i]!) * 2 ** -10.9 + 1e-6);
      expect(wrong).toEqual([]);
    },
  );
});
