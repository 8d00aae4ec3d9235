import { type Element, type Kernel, kernel } from './kernel.js';

export const scanSize = 64;

/** S <- exp(dt A) S + dt B x, y = C.S + D x: one thread a row and channel, the n entries of its state in registers. */
export function selectiveScan(heads: number, channels: number, n: number, type: Element): Kernel {
  return kernel({
    name: 'selective-scan',
    buffers: {
      x: [type, 'read'],
      dt: [type, 'read'],
      b: [type, 'read'],
      c: [type, 'read'],
      log_a: ['f32', 'read'],
      d: ['f32', 'read'],
      state: ['f32', 'write'],
      y: [type, 'write'],
    },
    size: scanSize,
    main: `  let row = row_at(group.y);
  let channel = group.x * ${scanSize}u + lane;
  if (channel >= ${channels}u) { return; }
  let head = channel / ${channels / heads}u;
  let base = (row.x * ${channels}u + channel) * ${n}u;
  var s: array<f32, ${n}>;
  var a: array<f32, ${n}>;
  for (var i = 0u; i < ${n}u; i++) {
    s[i] = state[base + i];
    a[i] = -exp(log_a[channel * ${n}u + i]);
  }
  for (var t = row.z; t < row.z + row.w; t++) {
    let at = t * ${channels}u + channel;
    let shared_at = (t * ${heads}u + head) * ${n}u; // b and c serve all channels of a head
    let step = f32(dt[at]);
    let input = f32(x[at]);
    var sum = d[channel] * input;
    for (var i = 0u; i < ${n}u; i++) {
      s[i] = exp(step * a[i]) * s[i] + step * input * f32(b[shared_at + i]);
      sum += f32(c[shared_at + i]) * s[i];
    }
    y[at] = ${type}(sum);
  }
  for (var i = 0u; i < ${n}u; i++) { state[base + i] = s[i]; }`,
  });
}
