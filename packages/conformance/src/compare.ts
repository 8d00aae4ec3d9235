/** |a - b| / |b| over all entries; |a| where b is zero throughout. */
export function rmsRatio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let error = 0;
  let size = 0;
  for (let i = 0; i < want.length; i++) {
    error += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return Math.sqrt(error / (size || 1));
}

/** Largest difference in units of the RMS of `want`. */
export function peakRatio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let largest = 0;
  let size = 0;
  for (let i = 0; i < want.length; i++) {
    largest = Math.max(largest, Math.abs(got[i]! - want[i]!));
    size += want[i]! ** 2;
  }
  return largest / (Math.sqrt(size / want.length) || 1);
}

/**
 * Throws unless `got` is finite and close to `want`: first any NaN or infinity, then the RMS error ratio (at most `rms`), then
 * the largest difference (at most `rms * peak`).
 */
export function expectClose(
  what: string,
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  rms: number,
  peak: number,
): void {
  if (got.length !== want.length) throw new Error(`${what}: ${got.length} values, expected ${want.length}`);
  for (let i = 0; i < want.length; i++) {
    if (!Number.isFinite(want[i])) throw new Error(`${what}: the expected value ${i} is ${want[i]}: the test is wrong`);
    if (!Number.isFinite(got[i]))
      throw new Error(`${what}: value ${i} of ${got.length} is ${got[i]}, expected ${want[i]}`);
  }
  const ratio = rmsRatio(got, want);
  const largest = peakRatio(got, want);
  const figures = `RMS ratio ${ratio.toExponential(2)}, largest difference ${largest.toExponential(2)} RMS`;
  if (!(ratio <= rms)) throw new Error(`${what}: ${figures}; the RMS ratio must be at most ${rms}`);
  if (!(largest <= rms * peak))
    throw new Error(`${what}: ${figures}; the difference must be at most ${rms * peak} RMS`);
}

/** Throws unless both are the same bits. */
export function expectEqualBits(what: string, got: Float32Array, want: Float32Array): void {
  const [a, b] = [new Uint32Array(got.slice().buffer), new Uint32Array(want.slice().buffer)];
  if (a.length !== b.length) throw new Error(`${what}: ${a.length} values, expected ${b.length}`);
  const at = a.findIndex((bits, index) => bits !== b[index]);
  if (at >= 0) throw new Error(`${what}: value ${at} is ${got[at]}, must be bit-equal to ${want[at]}`);
}
