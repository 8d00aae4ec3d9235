import { elementCount, fromFloat16, toFloat16 } from '@dsla/spec';
import { quantiseOperator } from './cuda/quantise.js';
import type { Quantised } from './dialect.js';
import type { PartDerivation } from './lowering.js';

// Matrices in 8 or 4 bits: blocks of 32 neighbours along the width share a float16 scale, value = scale * integer (the schemes Q8_0
// and Q4_0 of llama.cpp), as the operator MatMulNBits wants them: integers first, without a sign, then the scales.

export const blockSize = 32;

const bits: Readonly<Record<Quantised, number>> = { q8: 8, q4: 4 };

/** Blocks at a time, so that what is made in between stays in the processor's caches. */
const chunk = 1024;

/**
 * Blocks of `values`, a multiple of 32 of them: integers with 128 or 8 added, of 4 bits the first of two in the low half, then the
 * scales. Q8: scale = max |x| / 127. Q4: scale = -m / 8 with m the number of largest magnitude.
 */
function quantise(format: Quantised, type: 'float' | 'float16', values: Float32Array | Uint16Array): Uint8Array {
  const [codeBytes, count] = [(values.length * bits[format]) / 8, values.length / blockSize];
  const bytes = new Uint8Array(codeBytes + count * (type === 'float16' ? 2 : 4));
  const codes = new Uint8ClampedArray(bytes.buffer, 0, codeBytes);
  const held =
    type === 'float16' ? new Uint16Array(bytes.buffer, codeBytes) : new Float32Array(bytes.buffer, codeBytes);
  const encode = format === 'q8' ? encode8 : encode4;
  const divisor = format === 'q8' ? 127 : -8;
  const numbers = new Float32Array(chunk * blockSize);
  const raw = new Float32Array(chunk);
  for (let first = 0; first < count; first += chunk) {
    const part = values.subarray(first * blockSize, (first + chunk) * blockSize);
    const own = part instanceof Uint16Array ? fromFloat16(part, numbers) : part;
    const blocks = part.length / blockSize;
    findPeaks(own, raw);
    for (let block = 0; block < blocks; block++) {
      const peak = raw[block]!;
      raw[block] = (format === 'q8' ? Math.abs(peak) : peak) / divisor;
    }
    const scales = toFloat16(raw);
    const rounded = fromFloat16(scales);
    held.set((held instanceof Uint16Array ? scales : rounded).subarray(0, blocks), first);
    for (let block = 0; block < blocks; block++) {
      const scale = rounded[block]!;
      raw[block] = scale === 0 ? 0 : 1 / scale;
    }
    encode(own, raw, codes, (first * blockSize * bits[format]) / 8);
  }
  return bytes;
}

// Billions of numbers go through these loops: typed arrays, no closures, no calls inside.

/** Of each block the number of largest magnitude, the first of equals. */
function findPeaks(values: Float32Array, peaks: Float32Array): void {
  const magnitudes = new Uint32Array(values.buffer, values.byteOffset, values.length); // but for the sign, ordered as the numbers are
  for (let block = 0, at = 0; at < values.length; block++) {
    let largest = 0;
    let peak = at;
    for (const end = at + blockSize; at < end; at++) {
      const magnitude = magnitudes[at]! & 0x7fffffff;
      if (magnitude > largest) {
        largest = magnitude;
        peak = at;
      }
    }
    peaks[block] = largest > 0 ? values[peak]! : 0;
  }
}

/** `inverses`: of the scales. Codes are written from `to` on; a clamped array rounds for us, halves to even ones. */
function encode8(values: Float32Array, inverses: Float32Array, codes: Uint8ClampedArray, to: number): void {
  for (let block = 0, at = 0; at < values.length; block++) {
    const inverse = inverses[block]!;
    for (const end = at + blockSize; at < end; at++) codes[to + at] = Math.fround(values[at]! * inverse) + 128;
  }
}

/** Added and taken away again, it rounds to a whole number, halves to even ones. */
const evenly = 1.5 * 2 ** 52;

function encode4(values: Float32Array, inverses: Float32Array, codes: Uint8ClampedArray, to: number): void {
  for (let block = 0, at = 0; at < values.length; block++) {
    const inverse = inverses[block]!;
    for (const end = at + blockSize; at < end; at += 2) {
      const low = Math.fround(values[at]! * inverse) + 8 + evenly - evenly;
      const high = Math.fround(values[at + 1]! * inverse) + 8 + evenly - evenly;
      codes[to + (at >> 1)] = Math.min(Math.max(low, 0), 15) + 16 * Math.min(Math.max(high, 0), 15);
    }
  }
}

/** Both parts of a matrix [out, in] lie in one piece of memory, which is loaded once. */
export function blocksOf(
  format: Quantised,
  type: 'float' | 'float16',
): { readonly codes: PartDerivation; readonly scales: PartDerivation } {
  const codeBytes = ([out, width]: readonly number[]): number => (out! * width! * bits[format]) / 8;
  const whole = {
    make: (values: Float32Array | Uint16Array): Uint8Array => quantise(format, type, values),
    operator: quantiseOperator(format, type),
    bytes: (shape: readonly number[]) =>
      codeBytes(shape) + (elementCount(shape) / blockSize) * (type === 'float16' ? 2 : 4),
  };
  return {
    codes: {
      name: format,
      shape: ([out, width]) => [out!, width! / blockSize, (blockSize * bits[format]) / 8],
      view: { ...whole, type: 'uint8', offset: () => 0 },
    },
    scales: {
      name: format,
      shape: ([out, width]) => [out!, width! / blockSize],
      view: { ...whole, type, offset: codeBytes },
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
