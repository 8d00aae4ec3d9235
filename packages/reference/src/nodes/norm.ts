/** w * x / sqrt(mean(x^2) + eps) over each stretch of weight.length features; x [rows, width]. */
export function rmsNorm(x: Float64Array, weight: Float64Array, eps: number): Float64Array {
  const width = weight.length;
  const y = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x[row + i]! ** 2;
    const scale = 1 / Math.sqrt(squares / width + eps);
    for (let i = 0; i < width; i++) y[row + i] = weight[i]! * x[row + i]! * scale;
  }
  return y;
}
