import type { Shape } from './elementwise.js';
import { type Domain, float, itemAt, type Kernel, kernel, reductions } from './kernel.js';

const normSize = 128;

/** y = w * x / sqrt(mean(x^2) + eps), one workgroup an item. With `sum`, x = a + b is written there first. */
export function rmsNorm(domain: Domain, y: Shape, x: Shape, eps: number, added?: { b: Shape; sum: Shape }): Kernel {
  const { width } = x;
  const value = added ? 'f32(x[base + i]) + f32(b[base + i])' : 'f32(x[base + i])';
  // What was written is what is normed: the same rounding as two separate kernels.
  const keep = added ? `sum[base + i] = ${added.sum.type}(v); ` : '';
  const rounded = added && added.sum.type === 'f16' ? 'f32(f16(v))' : 'v';
  const again = added ? (added.sum.type === 'f16' ? `f32(f16(${value}))` : value) : value;
  return kernel({
    name: added ? 'add-rms-norm' : 'rms-norm',
    buffers: {
      x: [x.type, 'read'],
      ...(added ? { b: [added.b.type, 'read'] as const } : {}),
      w: ['f32', 'read'],
      ...(added ? { sum: [added.sum.type, 'write'] as const } : {}),
      y: [y.type, 'write'],
    },
    module: reductions(normSize),
    size: normSize,
    main: `  let base = ${itemAt[domain]}(group.x).x * ${width}u;
  var squares = 0.0;
  for (var i = lane; i < ${width}u; i += ${normSize}u) {
    let v = ${value};
    ${keep}squares += ${rounded} * ${rounded};
  }
  let scale = inverseSqrt(sum_all(squares, lane) / ${float(width)} + ${float(eps)});
  for (var i = lane; i < ${width}u; i += ${normSize}u) {
    y[base + i] = ${y.type}(w[i] * (${again}) * scale);
  }`,
  });
}
