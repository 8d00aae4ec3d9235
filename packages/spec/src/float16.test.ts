import { describe, expect, it } from 'vitest';
import { fromFloat16, toFloat16 } from './float16.js';

const halves = Uint16Array.from({ length: 65536 }, (_, index) => index);
const values = fromFloat16(halves);

/** Definition of rounding, in float64: a multiple of the spacing at x, ties to the even multiple. */
function nearest(x: number): number {
  const spacing = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), -14) - 10);
  const steps = x / spacing;
  const floor = Math.floor(steps);
  const rest = steps - floor;
  const even = floor % 2 === 0 ? floor : floor + 1;
  const rounded = (rest < 0.5 ? floor : rest > 0.5 ? floor + 1 : even) * spacing;
  return Math.abs(rounded) > 65504 ? Math.sign(x) * Number.POSITIVE_INFINITY : rounded;
}

describe('float16', () => {
  it('decodes known bits', () => {
    const known: [number, number][] = [
      [0x3c00, 1],
      [0xc000, -2],
      [0x7bff, 65504],
      [0x0400, 2 ** -14],
      [0x0001, 2 ** -24],
      [0x3555, 0.333251953125],
      [0x7c00, Number.POSITIVE_INFINITY],
      [0xfc00, Number.NEGATIVE_INFINITY],
      [0x8000, -0],
    ];
    for (const [half, value] of known) expect(values[half]).toBe(value);
    expect(values[0x7e00]).toBeNaN();
  });

  it('returns every half to its own bits', () => {
    const back = toFloat16(values);
    for (const half of halves) {
      if (Number.isNaN(values[half])) expect(back[half]! & 0x7fff).toBeGreaterThan(0x7c00);
      else if (back[half] !== half) expect.fail(`${half} became ${back[half]}`);
    }
  });

  it('rounds to nearest even around every half and every midpoint', () => {
    const inputs: number[] = [];
    for (let half = 0; half < 0x7c00; half++) {
      const here = values[half]!;
      const next = half === 0x7bff ? 65536 : values[half + 1]!;
      const middle = (here + next) / 2; // exact in float32
      for (const x of [here, middle, middle * (1 - 2 ** -20), middle * (1 + 2 ** -20)]) {
        if (x > 0) inputs.push(x, -x);
      }
    }
    const singles = Float32Array.from(inputs);
    const rounded = fromFloat16(toFloat16(singles));
    for (const [index, x] of singles.entries()) {
      if (!Object.is(rounded[index], nearest(x) || Math.sign(x) * 0))
        expect.fail(`${x} became ${rounded[index]}, not ${nearest(x)}`);
    }
  });

  it('keeps the signs of zero, NaN, infinity and of what is too small', () => {
    const bits = toFloat16(new Float32Array([-0, Number.NaN, Number.NEGATIVE_INFINITY, -1e-10, 2 ** -25, 1e30]));
    expect([...bits]).toEqual([0x8000, 0x7e00, 0xfc00, 0x8000, 0, 0x7c00]);
  });
});
