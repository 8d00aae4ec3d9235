import { fromFloat16, toFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { openRunner } from './kernel-runner.js';
import * as elementwise from './kernels/elementwise.js';
import type { Kernel } from './kernels/kernel.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();
const [width, count] = [24, 50];
const [half, full] = [
  { width, type: 'f16' },
  { width, type: 'f32' },
] as const;

const silu = (x: number): number => x / (1 + Math.exp(-x));
type Value = (a: number, b: number, y: number) => number;
const [add, accumulate]: [Value, Value] = [(a, b) => a + b, (a, _, y) => y + a];
/** Kernels, the types of a, b (where they read one) and y, and what they compute. */
const kernels: [kernel: Kernel, types: readonly elementwise.Shape[], value: Value][] = [
  [elementwise.add('token', half, half, half), [half, half, half], add],
  [elementwise.add('token', full, full, half), [full, half, full], add],
  [elementwise.add('token', half, full, half), [full, half, half], add],
  [elementwise.multiply('token', half, half, half), [half, half, half], (a, b) => a * b],
  [elementwise.accumulate('token', half, half), [half, half], accumulate],
  [elementwise.accumulate('token', full, half), [half, full], accumulate],
  [elementwise.activateMul('silu', 'token', half, half, half), [half, half, half], (a, b) => silu(a) * b],
  [elementwise.activate('silu', 'token', half, half), [half, half], silu],
  [elementwise.activate('softplus', 'token', half, half), [half, half], (a) => Math.log1p(Math.exp(a))],
  [elementwise.activate('logSigmoid', 'token', half, half), [half, half], (a) => -Math.log1p(Math.exp(-a))],
];

/** What a buffer holds, and what it means. */
function wave({ type }: elementwise.Shape, seed: number) {
  const numbers = Float32Array.from({ length: count * width }, (_, i) => 5 * Math.sin(seed + 12.9898 * i));
  if (type === 'f32') return { words: numbers, numbers };
  const halves = toFloat16(numbers);
  return { words: new Uint32Array(halves.slice().buffer), numbers: fromFloat16(halves) };
}

describe.skipIf(obstacle)(`eight numbers a thread, some in float16${obstacle ? ` (${obstacle})` : ''}`, () => {
  it.each(
    kernels.map(([kernel, shapes, value]) => ({
      name: `${kernel.name} of ${shapes.map(({ type }) => type).join(', ')}`,
      kernel,
      shapes,
      value,
    })),
  )('$name', async ({ kernel, shapes, value }) => {
    expect(elementwise.elementsAThread(...shapes)).toBe(8);
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const values = shapes.map((shape, n) => wave(shape, n + 1));
    const buffers = values.map(({ words }) => runner.buffer(words));
    await runner.run(kernel, buffers, [Math.ceil((count * width) / 8 / elementwise.elementwiseSize), 1, 1]);
    const result = await runner.read(buffers.at(-1)!);
    const wide = shapes.at(-1)!.type === 'f32';
    const got = (wide ? new Float32Array(result) : fromFloat16(new Uint16Array(result))).subarray(0, count * width);
    const [a, b, y] = [values[0]!, values.at(-2)!, values.at(-1)!].map(({ numbers }) => numbers) as Float32Array[];
    const want = [...a!].map((x, i) => value(x, b![i]!, y![i]!));
    // Half a unit in the last place, and the roundings of float32.
    const most = wide ? 2 ** -23.9 : 2 ** -10.9;
    const wrong = [...got].filter((x, i) => Math.abs(x - want[i]!) > Math.abs(want[i]!) * most + 1e-6);
    expect(wrong).toEqual([]);
  });

  it('one where none is, or where eight are no whole', () => {
    expect(elementwise.elementsAThread(full, full)).toBe(1);
    expect(elementwise.elementsAThread({ width: 20, type: 'f16' })).toBe(1);
  });
});
