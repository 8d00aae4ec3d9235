import type { Tensor } from '../tensor.js';

/**
 * S <- exp(dt A) S + dt B x, y = C.S + D x of one row, A = -exp(logA). x, dt [count, channels]; b, c [count, heads*n];
 * logA [heads, channels/heads, n]; d [heads, channels/heads]; state [channels, n] is moved on. Returns [count, channels].
 */
export function selectiveScan(
  x: Float64Array,
  dt: Float64Array,
  b: Float64Array,
  c: Float64Array,
  logA: Tensor,
  d: Tensor,
  state: Float64Array,
): Float64Array {
  const [heads, width, n] = logA.shape as [number, number, number];
  const channels = heads * width;
  const y = new Float64Array(x.length);
  for (let t = 0; t * channels < x.length; t++) {
    for (let channel = 0; channel < channels; channel++) {
      const at = t * channels + channel;
      const shared = (t * heads + Math.floor(channel / width)) * n; // b and c serve all channels of a head
      let sum = d.data[channel]! * x[at]!;
      for (let i = 0; i < n; i++) {
        const cell = channel * n + i;
        const decay = Math.exp(-dt[at]! * Math.exp(logA.data[cell]!));
        state[cell] = decay * state[cell]! + dt[at]! * b[shared + i]! * x[at]!;
        sum += c[shared + i]! * state[cell]!;
      }
      y[at] = sum;
    }
  }
  return y;
}
