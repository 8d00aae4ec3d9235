// IEEE binary16 as raw bits: Node 20 has no Float16Array.

const word = new Uint32Array(1);
const single = new Float32Array(word.buffer);
let table: Float32Array | undefined;

/** Values of raw float16 bits; exact. `out` must hold at least as many elements. */
export function fromFloat16(bits: Uint16Array, out: Float32Array = new Float32Array(bits.length)): Float32Array {
  table ??= Float32Array.from({ length: 65536 }, (_, half) => decode(half));
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]!]!;
  return out;
}

/** Raw float16 bits, rounded to nearest even; beyond 65520 infinity. `out` must hold at least as many elements. */
export function toFloat16(values: Float32Array, out: Uint16Array = new Uint16Array(values.length)): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) out[i] = encode(words[i]!);
  return out;
}

function decode(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

function encode(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x47800000) return sign | 0x7c00; // 65536 and above
  if (magnitude < 0x38800000) {
    // Below 2^-14: 0.5 has the spacing of float16's subnormals, 2^-24, so float32 addition rounds for us.
    word[0] = magnitude;
    single[0] = single[0]! + 0.5;
    return sign | (word[0]! - 0x3f000000);
  }
  // Re-bias the exponent and round to nearest even; a carry runs into the exponent, up to infinity.
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}
