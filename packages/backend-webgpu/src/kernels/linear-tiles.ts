import type { Shape } from './elementwise.js';
import { type Domain, type Element, itemAt, items, type Kernel, kernel } from './kernel.js';

export const tileSize = 64;

/** y = x W^T + b with W [out, in]: tiles of 64 items by 64 outputs, 4 by 4 a thread, sums in float32. */
export function linearTiles(domain: Domain, y: Shape, x: Shape, w: Element, bias: boolean): Kernel {
  return kernel({
    name: 'linear-tiles',
    buffers: {
      x: [x.type, 'read'],
      w: [w, 'read'],
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      y: [y.type, 'write'],
    },
    module: `const depth = 16u;
var<workgroup> xs: array<f32, 1024>; // [depth, 64 items]
var<workgroup> ws: array<f32, 1024>; // [depth, 64 outputs]`,
    size: 256,
    main: `  let item_base = group.y * 64u;
  let out_base = group.x * 64u;
  let column = (lane % 16u) * 4u;
  let row = (lane / 16u) * 4u;
  // Each thread loads four neighbours along the depth of one item and of one output.
  let load = lane / 4u;
  let part = (lane % 4u) * 4u;
  let item = min(item_base + load, ${items[domain]} - 1u);
  let x_row = ${itemAt[domain]}(item).x * ${x.width}u;
  let w_row = min(out_base + load, ${y.width - 1}u) * ${x.width}u;
  var acc: array<vec4f, 4>;
  for (var k = 0u; k < ${x.width}u; k += depth) {
    for (var j = 0u; j < 4u; j++) {
      let d = k + part + j;
      let inside = d < ${x.width}u;
      let at = min(d, ${x.width - 1}u);
      xs[(part + j) * 64u + load] = select(0.0, f32(x[x_row + at]), inside);
      ws[(part + j) * 64u + load] = select(0.0, f32(w[w_row + at]), inside);
    }
    workgroupBarrier();
    for (var d = 0u; d < depth; d++) {
      let c = d * 64u + column;
      let values = vec4f(ws[c], ws[c + 1u], ws[c + 2u], ws[c + 3u]);
      for (var r = 0u; r < 4u; r++) { acc[r] += xs[d * 64u + row + r] * values; }
    }
    workgroupBarrier();
  }
  for (var r = 0u; r < 4u; r++) {
    let i = item_base + row + r;
    if (i >= ${items[domain]}) { break; }
    let base = ${itemAt[domain]}(i).x * ${y.width}u;
    for (var c = 0u; c < 4u; c++) {
      let o = out_base + column + c;
      if (o < ${y.width}u) { y[base + o] = ${y.type}(acc[r][c]${bias ? ' + bias[o]' : ''}); }
    }
  }`,
  });
}
