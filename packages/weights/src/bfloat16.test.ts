import { describe, expect, it } from 'vitest';
import { fromBfloat16, toBfloat16 } from './bfloat16.js';

const bits = Uint16Array.from({ length: 65536 }, (_, index) => index);

/** Definition: sign, 8 bits of exponent, 7 of fraction. */
function value(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 7) & 255;
  const fraction = half & 127;
  if (exponent === 255) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * fraction * 2 ** -133 : sign * (128 + fraction) * 2 ** (exponent - 134);
}

describe('bfloat16', () => {
  it('has the value of its definition for all 65,536 patterns, and returns to it', () => {
    const values = fromBfloat16(bits);
    const back = toBfloat16(values);
    for (const half of bits) {
      if (!Object.is(values[half], value(half))) expect.fail(`${half}: ${values[half]}`);
      if (Number.isNaN(value(half))) expect(back[half]! & 0x7fff).toBeGreaterThan(0x7f80);
      else if (back[half] !== half) expect.fail(`${half} became ${back[half]}`);
    }
  });

  it('rounds to nearest, ties to even, around every midpoint', () => {
    for (let half = 0; half < 0x7f7f; half++) {
      const [low, high] = [value(half), value(half + 1)];
      const middle = (low + high) / 2; // exact in float32
      const even = half % 2 === 0 ? half : half + 1;
      const near = middle * 2 ** -20;
      const inputs = new Float32Array([middle, middle - near, middle + near]);
      const wants = [even, inputs[1]! < middle ? half : even, inputs[2]! > middle ? half + 1 : even];
      expect([...toBfloat16(inputs)], `around ${middle}`).toEqual(wants);
    }
    expect([...toBfloat16(new Float32Array([3.4e38, -3.4e38, -0]))]).toEqual([0x7f80, 0xff80, 0x8000]);
  });
});
