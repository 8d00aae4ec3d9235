import { fromFloat16, toFloat16 } from '@dsla/spec';
import type { Element } from './kernels/kernel.js';

// For tests only: float16 numbers for kernels, and what products of them are by definition.

/** Halves as words, and as the numbers that they stand for. */
export interface Halves {
  readonly words: Uint32Array<ArrayBuffer>;
  readonly numbers: Float32Array;
}

/** So many, at most `size` in magnitude. */
export function halves(length: number, seed: number, size: number | ((i: number) => number) = 1): Halves {
  const sizeOf = typeof size === 'number' ? () => size : size;
  const bits = toFloat16(
    Float32Array.from({ length }, (_, i) => sizeOf(i) * Math.sin(seed + 12.9898 * i) * Math.cos(0.37 * i * seed)),
  );
  return { words: new Uint32Array(bits.slice().buffer), numbers: fromFloat16(bits) };
}

/** Halves, or numbers near them that are none, with their words in float32. */
export function numbersIn(type: Element, ...[length, seed, size]: Parameters<typeof halves>): Halves {
  const near = halves(length, seed, size);
  if (type === 'f16') return near;
  const numbers = near.numbers.map((x) => 1.0003 * x);
  return { words: new Uint32Array(numbers.slice().buffer), numbers };
}

/** RMS of the differences, beside that of what is wanted. */
export function ratio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let [error, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    error += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return Math.sqrt(error / size);
}

/** silu(x W^T) * (x U^T), [items, outputs], of x [items, width], w and u [outputs, width]. */
export function gatedProduct(x: Halves, w: Halves, u: Halves, width: number): number[] {
  const [items, outputs] = [x, w].map(({ numbers }) => numbers.length / width) as [number, number];
  const dot = ({ numbers }: Halves, t: number, o: number) =>
    numbers
      .subarray(o * width, (o + 1) * width)
      .reduce((sum, weight, k) => sum + weight * x.numbers[t * width + k]!, 0);
  return Array.from({ length: items * outputs }, (_, i) => {
    const [t, o] = [Math.floor(i / outputs), i % outputs];
    const gate = dot(w, t, o);
    return (gate / (1 + Math.exp(-gate))) * dot(u, t, o);
  });
}
