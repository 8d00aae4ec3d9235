import type { Rope } from '@dsla/spec';

/**
 * Rotates every head of x [heads*headDim] in place by `position` (in tokens; negative undoes it): the pairs
 * (i, i + rotaryDim/2) turn by position * frequencies[i].
 */
export function rotate(x: Float64Array, headDim: number, rope: Rope, position: number): void {
  const half = rope.rotaryDim / 2;
  for (let i = 0; i < half; i++) {
    const angle = position * rope.frequencies[i]!;
    const cos = Math.cos(angle);
    const sin = Math.sin(angle);
    for (let head = 0; head < x.length; head += headDim) {
      const a = x[head + i]!;
      const b = x[head + i + half]!;
      x[head + i] = a * cos - b * sin;
      x[head + i + half] = b * cos + a * sin;
    }
  }
}

/** A rotated copy; x itself where there is no rope. */
export function rotated(x: Float64Array, headDim: number, rope: Rope | undefined, position: number): Float64Array {
  if (!rope) return x;
  const copy = x.slice();
  rotate(copy, headDim, rope, position);
  return copy;
}
