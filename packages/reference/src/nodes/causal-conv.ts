import type { Tensor } from '../tensor.js';

/**
 * y_t = b + sum_j w_j x_{t-K+1+j} of one row. x [count, channels], weight [channels, 1, K], bias [channels];
 * state [channels, K - 1], oldest first, is moved on. Returns [count, channels].
 */
export function causalConv(
  x: Float64Array,
  weight: Tensor,
  bias: Tensor | undefined,
  state: Float64Array,
): Float64Array {
  const [channels, , kernel] = weight.shape as [number, number, number];
  const y = new Float64Array(x.length);
  for (let t = 0; t * channels < x.length; t++) {
    for (let channel = 0; channel < channels; channel++) {
      const inputs = state.subarray(channel * (kernel - 1), (channel + 1) * (kernel - 1));
      const current = x[t * channels + channel]!;
      const taps = channel * kernel;
      let sum = weight.data[taps + kernel - 1]! * current + (bias?.data[channel] ?? 0);
      for (let j = 0; j < kernel - 1; j++) sum += weight.data[taps + j]! * inputs[j]!;
      y[t * channels + channel] = sum;
      if (kernel > 1) {
        inputs.copyWithin(0, 1);
        inputs[kernel - 2] = current;
      }
    }
  }
  return y;
}
