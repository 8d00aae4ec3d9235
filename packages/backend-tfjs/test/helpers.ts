import * as tf from '@tensorflow/tfjs-core';
import { expect } from 'vitest';

/** |a - b| / |b| over all entries; |a| where b is zero throughout. */
function rmsRatio(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let error = 0;
  let size = 0;
  for (let i = 0; i < want.length; i++) {
    error += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return Math.sqrt(error / (size || 1));
}

/** Fails unless `got` has the values of `want`, NaN-free, within an RMS error ratio. */
export function expectClose(what: string, got: ArrayLike<number>, want: ArrayLike<number>, ratio = 1e-5): void {
  expect(got.length, what).toBe(want.length);
  expect(Array.from(got).every(Number.isFinite), `${what} is finite`).toBe(true);
  expect(rmsRatio(got, want), `${what}: RMS error ratio`).toBeLessThan(ratio);
}

/** Runs `body` in a tidy of its own and fails if tensors are left. */
export function withoutLeaks<T>(body: () => T): T {
  const before = tf.memory().numTensors;
  let result: T;
  tf.tidy(() => {
    result = body();
  });
  expect(tf.memory().numTensors).toBe(before);
  return result!;
}
