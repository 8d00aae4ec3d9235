import { elementwiseSize, type Shape } from './elementwise.js';
import { type Domain, type Element, itemAt, items, type Kernel, kernel } from './kernel.js';

/** y = x W^T + b with W [out, in], one thread an output: the definition, and the kernel of narrow products. */
export function linear(domain: Domain, y: Shape, x: Shape, w: Element, bias: boolean): Kernel {
  return kernel({
    name: 'linear',
    buffers: {
      x: [x.type, 'read'],
      w: [w, 'read'],
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      y: [y.type, 'write'],
    },
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= ${items[domain]} * ${y.width}u) { return; }
  let item = ${itemAt[domain]}(i / ${y.width}u).x;
  let o = i % ${y.width}u;
  var sum = ${bias ? 'bias[o]' : '0.0'};
  for (var k = 0u; k < ${x.width}u; k++) { sum += f32(x[item * ${x.width}u + k]) * f32(w[o * ${x.width}u + k]); }
  y[item * ${y.width}u + o] = ${y.type}(sum);`,
  });
}
