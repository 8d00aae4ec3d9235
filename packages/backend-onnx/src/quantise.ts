import { fromFloat16, toFloat16 } from '@dsla/spec';
import type { Quantised } from './dialect.js';
import type { PartDerivation } from './lowering.js';
import type { ElementType } from './protobuf.js';

// Matrices in 8 or 4 bits: blocks of 32 neighbours along the width share a float16 scale, value = scale * integer (the schemes Q8_0
// and Q4_0 of llama.cpp), as the operator MatMulNBits wants them: integers first, without a sign, then the scales.

export const blockSize = 32;

const bits: Readonly<Record<Quantised, number>> = { q8: 8, q4: 4 };

/** Numbers at a time, so that what is made in between stays in the processor's caches. */
const chunk = 2 ** 15;

/**
 * Blocks of `values`, a multiple of 32 of them: integers with 128 or 8 added, of 4 bits the first of two in the low half, then the
 * scales. Q8: scale = max |x| / 127. Q4: scale = -m / 8 with m the number of largest magnitude.
 */
function quantise(format: Quantised, type: ElementType, values: Float32Array | Uint16Array): Uint8Array {
  const [codeBytes, count] = [(values.length * bits[format]) / 8, values.length / blockSize];
  const bytes = new Uint8Array(codeBytes + count * (type === 'float16' ? 2 : 4));
  const codes = new Uint8ClampedArray(bytes.buffer, 0, codeBytes);
  const held =
    type === 'float16' ? new Uint16Array(bytes.buffer, codeBytes) : new Float32Array(bytes.buffer, codeBytes);
  const encode = format === 'q8' ? encode8 : encode4;
  const numbers = new Float32Array(chunk);
  const raw = new Float32Array(chunk / blockSize);
  for (let start = 0; start < values.length; start += chunk) {
    const part = values.subarray(start, start + chunk);
    const own = part instanceof Uint16Array ? fromFloat16(part, numbers) : part;
    const blocks = part.length / blockSize;
    for (let block = 0; block < blocks; block++) {
      const peak = peakOf(own, block * blockSize);
      raw[block] = format === 'q8' ? Math.abs(peak) / 127 : peak / -8;
    }
    const scales = toFloat16(raw);
    const rounded = fromFloat16(scales);
    held.set((held instanceof Uint16Array ? scales : rounded).subarray(0, blocks), start / blockSize);
    const codesOf = codes.subarray((start * bits[format]) / 8);
    for (let block = 0; block < blocks; block++) {
      const scale = rounded[block]!;
      encode(own, block * blockSize, scale === 0 ? 0 : Math.fround(1 / scale), codesOf);
    }
  }
  return bytes;
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
): { readonly codes: PartDerivation; readonly scales: PartDerivation } {
  const make = (values: Float32Array | Uint16Array): Uint8Array => quantise(format, type, values);
  return {
    codes: {
      name: format,
      shape: ([out, width]) => [out!, width! / blockSize, (blockSize * bits[format]) / 8],
      view: { type: 'uint8', make, offset: () => 0 },
    },
    scales: {
      name: format,
      shape: ([out, width]) => [out!, width! / blockSize],
      view: { type, make, offset: ([out, width]) => (out! * width! * bits[format]) / 8 },
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
