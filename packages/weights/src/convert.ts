import { DslaError, fromFloat16, toFloat16 } from '@dsla/spec';
import { fromBfloat16 } from './bfloat16.js';

/** Float types of a checkpoint that can be converted. */
export type FloatType = 'f32' | 'f16' | 'bf16';
export type FloatArray = Float32Array | Uint16Array;

/**
 * Converts raw elements to float32 values or float16 bits, written to `out` from `at` on.
 * Shapes: source [n], out [>= at + n].
 */
export function convert(source: FloatArray, from: FloatType, out: FloatArray, at: number): void {
  const target = out.subarray(at, at + source.length);
  if (target instanceof Float32Array) {
    if (from === 'f16') fromFloat16(source as Uint16Array, target);
    else if (from === 'bf16') fromBfloat16(source as Uint16Array, target);
    else target.set(source);
  } else if (from === 'f16') target.set(source);
  else toFloat16(from === 'bf16' ? fromBfloat16(source as Uint16Array) : (source as Float32Array), target);
}

/**
 * Looks for NaN and infinity among converted elements from `at` on; float16 also has them where a value exceeds its range.
 * @throws DslaError E_FORMAT naming the tensor and the index of the element in the result.
 */
export function checkFinite(out: FloatArray, at: number, count: number, where: string): void {
  const index = out instanceof Float32Array ? badSingle(out, at, count) : badHalf(out, at, count);
  if (index < 0) return;
  const half = out instanceof Uint16Array;
  const value = half ? fromFloat16(out.subarray(index, index + 1))[0] : out[index];
  throw new DslaError('E_FORMAT', {
    where: `${where} element ${index}`,
    rule: half ? 'weights must be finite and within the range of float16' : 'weights must be finite',
    got: value,
    cure: half
      ? 'Load it as f32; if it still fails, download it again.'
      : 'The training diverged, or the file is damaged.',
    details: { index },
  });
}

function badSingle(values: Float32Array, at: number, count: number): number {
  for (let i = at; i < at + count; i++) if (values[i]! - values[i]! !== 0) return i;
  return -1;
}

function badHalf(bits: Uint16Array, at: number, count: number): number {
  for (let i = at; i < at + count; i++) if ((bits[i]! & 0x7c00) === 0x7c00) return i;
  return -1;
}
