import type { Tensor } from '../tensor.js';

/**
 * y = x W^T + b. x [rows, in], weight [out, in], bias [out]; returns [rows, out]. Four rows by four outputs at a time, for
 * speed only: every entry is summed over `in` from left to right, so it does not depend on the rows beside it.
 */
export function linear(x: Float64Array, weight: Tensor, bias?: Tensor): Float64Array {
  const [out, width] = weight.shape as [number, number];
  const rows = x.length / width;
  const y = new Float64Array(rows * out);
  for (let row = 0; row < rows; row += 4) {
    for (let column = 0; column < out; column += 4) {
      if (row + 4 <= rows && column + 4 <= out) tile(x, weight.data, y, row, column, width, out);
      else {
        for (let r = row; r < Math.min(row + 4, rows); r++) {
          for (let c = column; c < Math.min(column + 4, out); c++)
            y[r * out + c] = dot(x, r * width, weight.data, c * width, width);
        }
      }
    }
  }
  if (bias) for (let i = 0; i < y.length; i++) y[i]! += bias.data[i % out]!;
  return y;
}

/** Sum of a[i + n] * b[j + n] for n in 0..length-1. */
export function dot(a: Float64Array, i: number, b: Float64Array, j: number, length: number): number {
  let sum = 0;
  for (let n = 0; n < length; n++) sum += a[i + n]! * b[j + n]!;
  return sum;
}

/** Sixteen entries of y at once: each value read serves four products. */
// biome-ignore format: rows and columns
function tile(
  x: Float64Array,
  w: Float64Array,
  y: Float64Array,
  row: number,
  column: number,
  width: number,
  out: number,
): void {
  let s00 = 0, s01 = 0, s02 = 0, s03 = 0;
  let s10 = 0, s11 = 0, s12 = 0, s13 = 0;
  let s20 = 0, s21 = 0, s22 = 0, s23 = 0;
  let s30 = 0, s31 = 0, s32 = 0, s33 = 0;
  const x0 = row * width, x1 = x0 + width, x2 = x1 + width, x3 = x2 + width;
  const w0 = column * width, w1 = w0 + width, w2 = w1 + width, w3 = w2 + width;
  for (let n = 0; n < width; n++) {
    const a0 = x[x0 + n]!, a1 = x[x1 + n]!, a2 = x[x2 + n]!, a3 = x[x3 + n]!;
    const b0 = w[w0 + n]!, b1 = w[w1 + n]!, b2 = w[w2 + n]!, b3 = w[w3 + n]!;
    s00 += a0 * b0; s01 += a0 * b1; s02 += a0 * b2; s03 += a0 * b3;
    s10 += a1 * b0; s11 += a1 * b1; s12 += a1 * b2; s13 += a1 * b3;
    s20 += a2 * b0; s21 += a2 * b1; s22 += a2 * b2; s23 += a2 * b3;
    s30 += a3 * b0; s31 += a3 * b1; s32 += a3 * b2; s33 += a3 * b3;
  }
  const y0 = row * out + column, y1 = y0 + out, y2 = y1 + out, y3 = y2 + out;
  y[y0] = s00; y[y0 + 1] = s01; y[y0 + 2] = s02; y[y0 + 3] = s03;
  y[y1] = s10; y[y1 + 1] = s11; y[y1 + 2] = s12; y[y1 + 3] = s13;
  y[y2] = s20; y[y2 + 1] = s21; y[y2 + 2] = s22; y[y2 + 3] = s23;
  y[y3] = s30; y[y3 + 1] = s31; y[y3 + 2] = s32; y[y3 + 3] = s33;
}
