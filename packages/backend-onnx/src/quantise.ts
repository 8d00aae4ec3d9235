import { fromFloat16, toFloat16 } from '@dsla/spec';
import type { Quantised } from './dialect.js';
import type { Derivation } from './lowering.js';
import type { ElementType } from './protobuf.js';

// Matrices in 8 or 4 bits: blocks of 32 neighbours along the width share a float16 scale, value = scale * integer (the schemes Q8_0
// and Q4_0 of llama.cpp), as the operator MatMulNBits wants them: integers first, without a sign, then the scales.

export const blockSize = 32;

const bits: Readonly<Record<Quantised, number>> = { q8: 8, q4: 4 };

interface Blocks {
  /** [numbers * bits / 8]: integers with 128 or 8 added; of 4 bits the first of two lies in the low half. */
  readonly codes: Uint8ClampedArray;
  /** [numbers / 32], float16 */
  readonly scales: Uint16Array;
}

/** `values` is a multiple of 32 long. Q8: scale = max |x| / 127. Q4: scale = -m / 8 with m the number of largest magnitude. */
function quantise(format: Quantised, values: Float32Array): Blocks {
  const raw = new Float32Array(values.length / blockSize);
  for (let block = 0; block < raw.length; block++) {
    const peak = peakOf(values, block * blockSize);
    raw[block] = format === 'q8' ? Math.abs(peak) / 127 : peak / -8;
  }
  const scales = toFloat16(raw);
  const rounded = fromFloat16(scales);
  const codes = new Uint8ClampedArray((values.length * bits[format]) / 8);
  const encode = format === 'q8' ? encode8 : encode4;
  for (let block = 0; block < raw.length; block++) {
    const scale = rounded[block]!;
    encode(values, block * blockSize, scale === 0 ? 0 : Math.fround(1 / scale), codes);
  }
  return { codes, scales };
}

// Billions of numbers go through these loops: no closures, whole numbers where they do.

/** The number of largest magnitude in the block that begins at `from`, the first of equals. */
function peakOf(values: Float32Array, from: number): number {
  let peak = 0;
  let magnitude = 0;
  for (let at = from; at < from + blockSize; at++) {
    const x = values[at]!;
    const own = x < 0 ? -x : x;
    if (own > magnitude) {
      magnitude = own;
      peak = x;
    }
  }
  return peak;
}

/** A clamped array rounds for us, halves to even ones. */
function encode8(values: Float32Array, from: number, inverse: number, codes: Uint8ClampedArray): void {
  for (let at = from; at < from + blockSize; at++) codes[at] = Math.fround(values[at]! * inverse) + 128;
}

function encode4(values: Float32Array, from: number, inverse: number, codes: Uint8ClampedArray): void {
  for (let at = from; at < from + blockSize; at += 2) {
    const low = Math.min(Math.max(Math.fround(values[at]! * inverse) + 8, 0), 15) + evenly - evenly;
    const high = Math.min(Math.max(Math.fround(values[at + 1]! * inverse) + 8, 0), 15) + evenly - evenly;
    codes[at >> 1] = low + 16 * high;
  }
}

/** Added and taken away again, it rounds to a whole number, halves to even ones. */
const evenly = 1.5 * 2 ** 52;

/** Both parts of a matrix [out, in] lie in one piece of memory, which is loaded once. */
export function blocksOf(
  format: Quantised,
  type: ElementType,
): { readonly codes: Derivation; readonly scales: Derivation } {
  const whole: Omit<Derivation, 'view' | 'shape'> = {
    name: format,
    apply(values) {
      const { codes, scales } = quantise(format, values);
      const held = type === 'float16' ? scales : fromFloat16(scales);
      const bytes = new Uint8Array(codes.byteLength + held.byteLength);
      bytes.set(codes);
      bytes.set(new Uint8Array(held.buffer), codes.byteLength);
      return bytes;
    },
  };
  return {
    codes: {
      ...whole,
      shape: ([out, width]) => [out!, width! / blockSize, (blockSize * bits[format]) / 8],
      view: { type: 'uint8', offset: () => 0 },
    },
    scales: {
      ...whole,
      shape: ([out, width]) => [out!, width! / blockSize],
      view: { type, offset: ([out, width]) => (out! * width! * bits[format]) / 8 },
    },
  };
}

/** Whether a matrix is kept in blocks. */
export function hasBlocks([, width]: readonly number[]): boolean {
  return width! % blockSize === 0;
}

export function bitsOf(format: Quantised): number {
  return bits[format];
}
