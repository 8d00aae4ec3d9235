import { fromFloat16, toFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { openRunner } from './kernel-runner.js';
import type { Element } from './kernels/kernel.js';
import { linearThin, thinShape } from './kernels/linear-thin.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

/** Halves as words, and as the numbers that they stand for. */
function halves(length: number, seed: number): { words: Uint32Array<ArrayBuffer>; numbers: Float32Array } {
  const bits = toFloat16(Float32Array.from({ length }, (_, i) => Math.sin(seed + 12.9898 * i) * Math.cos(0.37 * i)));
  return { words: new Uint32Array(bits.slice().buffer), numbers: fromFloat16(bits) };
}

describe.skipIf(obstacle)(`products of some items, spelled out${obstacle ? ` (${obstacle})` : ''}`, () => {
  const cases: [items: number, type: Element, width: number][] = [
    [9, 'f16', 256],
    [21, 'f32', 280],
    [30, 'f16', 768],
    [50, 'f32', 128],
  ];
  it.each(cases)('%i items to %s of width %i', async (count, type, width) => {
    const out = 72;
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const [x, w] = [halves(count * width, 1), halves(out * width, 2)];
    const bias = Float32Array.from({ length: out }, (_, o) => Math.cos(o));
    const shape = thinShape(count);
    const kernel = linearThin('token', { width: out, type }, { width, type: 'f16' }, true, shape);
    const y = runner.buffer(new Float32Array(count * out));
    const buffers = [runner.buffer(x.words), runner.buffer(w.words), runner.buffer(bias), y];
    await runner.run(kernel, buffers, [Math.ceil(out / shape.outputs), Math.ceil(count / shape.items), 1]);
    // Halves are spelled out as float32 numbers, so that one y serves both types.
    const got = new Float32Array(await runner.read(y));
    let [error, size] = [0, 0];
    for (let t = 0; t < count; t++)
      for (let o = 0; o < out; o++) {
        let sum = bias[o]!;
        for (let k = 0; k < width; k++) sum += x.numbers[t * width + k]! * w.numbers[o * width + k]!;
        error += (got[t * out + o]! - sum) ** 2;
        size += sum ** 2;
      }
    expect(Math.sqrt(error / size)).toBeLessThan(1e-5);
  });
});
