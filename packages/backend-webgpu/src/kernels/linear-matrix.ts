import type { Shape } from './elementwise.js';
import { type Domain, itemAt, items, type Kernel, kernel } from './kernel.js';

/** Items and outputs of one workgroup. */
export const matrixTile = 128;

const depth = 32; // features a round; two rounds are in workgroup memory
const pitch = depth + 8; // distance of rows: a multiple of 16 bytes that spreads eight rows over all banks

/**
 * y = x W^T + b in float16 with float32 sums, by subgroup matrices of 16x16x16: 128 items by 128 outputs a workgroup, 64 by
 * 32 a subgroup of 32 lanes; the next round is loaded while this one is multiplied. The width of x is a multiple of 8.
 */
export function linearMatrix(domain: Domain, y: Shape, x: Shape, bias: boolean): Kernel {
  const vectors = x.width / 8;
  const tiles = [0, 1, 2, 3].flatMap((r) => [0, 1].map((c) => ({ r, c, name: `acc${r}${c}` })));
  return kernel({
    name: 'linear-matrix',
    buffers: {
      x: ['vec4u', 'read'],
      w: ['vec4u', 'read'],
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      y: [y.type, 'write'],
    },
    matrices: true,
    module: `var<workgroup> xs: array<f16, ${2 * matrixTile * pitch}>; // [2, items, pitch]
var<workgroup> ws: array<f16, ${2 * matrixTile * pitch}>; // [2, outputs, pitch]
var<workgroup> stage: array<f32, 2048>; // a tile of 16 by 16 for every subgroup
${matrixTypes}
${unpackInto('xs')}
${unpackInto('ws')}`,
    size: 256,
    main: `  let item_base = group.y * ${matrixTile}u;
  let out_base = group.x * ${matrixTile}u;
  let last = ${items[domain]} - 1u;
  let subgroup = lane / 32u;
  let row = (subgroup / 4u) * 64u;
  let column = (subgroup % 4u) * 32u;
  // Four lanes load 32 features of a row, rows r and r + 64.
  let part = lane % 4u;
  let line = lane / 4u;
  let x0 = ${itemAt[domain]}(min(item_base + line, last)).x * ${vectors}u;
  let x1 = ${itemAt[domain]}(min(item_base + line + 64u, last)).x * ${vectors}u;
  let w0 = min(out_base + line, ${y.width - 1}u) * ${vectors}u;
  let w1 = min(out_base + line + 64u, ${y.width - 1}u) * ${vectors}u;
  let slot = line * ${pitch}u + part * 8u;
${tiles.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
  var inside = part < ${vectors}u;
  store_xs(slot, select(vec4u(), x[x0 + min(part, ${vectors - 1}u)], inside));
  store_xs(slot + ${64 * pitch}u, select(vec4u(), x[x1 + min(part, ${vectors - 1}u)], inside));
  store_ws(slot, select(vec4u(), w[w0 + min(part, ${vectors - 1}u)], inside));
  store_ws(slot + ${64 * pitch}u, select(vec4u(), w[w1 + min(part, ${vectors - 1}u)], inside));
  workgroupBarrier();
  var now = 0u;
  for (var k = 0u; k < ${vectors}u; k += 4u) {
    // The loads of the next round are in flight during the products of this one.
    let next = k + 4u + part;
    let at = min(next, ${vectors - 1}u);
    inside = next < ${vectors}u;
    let nx0 = select(vec4u(), x[x0 + at], inside);
    let nx1 = select(vec4u(), x[x1 + at], inside);
    let nw0 = select(vec4u(), w[w0 + at], inside);
    let nw1 = select(vec4u(), w[w1 + at], inside);
    let base = now * ${matrixTile * pitch}u;
    for (var d = 0u; d < ${depth}u; d += 16u) {
${[0, 1, 2, 3]
  .map(
    (r) =>
      `      let left${r} = subgroupMatrixLoad<Left, row_major>(&xs, base + (row + ${16 * r}u) * ${pitch}u + d, ${pitch}u);`,
  )
  .join('\n')}
${[0, 1]
  .map(
    (c) =>
      `      let right${c} = subgroupMatrixLoad<Right, col_major>(&ws, base + (column + ${16 * c}u) * ${pitch}u + d, ${pitch}u);`,
  )
  .join('\n')}
${tiles.map(({ r, c, name }) => `      ${name} = subgroupMatrixMultiplyAccumulate(left${r}, right${c}, ${name});`).join('\n')}
    }
    now = 1u - now;
    let target_base = now * ${matrixTile * pitch}u + slot;
    store_xs(target_base, nx0);
    store_xs(target_base + ${64 * pitch}u, nx1);
    store_ws(target_base, nw0);
    store_ws(target_base + ${64 * pitch}u, nw1);
    workgroupBarrier();
  }
  let mine = subgroup * 256u;
  let own = lane % 32u;
${tiles
  .map(
    ({ r, c, name }) => `  subgroupMatrixStore<row_major>(&stage, mine, ${name}, 16u);
  workgroupBarrier();
  for (var e = own; e < 256u; e += 32u) {
    let i = item_base + row + ${16 * r}u + e / 16u;
    let o = out_base + column + ${16 * c}u + e % 16u;
    if (i <= last && o < ${y.width}u) {
      y[${itemAt[domain]}(i).x * ${y.width}u + o] = ${y.type}(stage[mine + e]${bias ? ' + bias[o]' : ''});
    }
  }
  workgroupBarrier();`,
  )
  .join('\n')}`,
  });
}

/** WGSL names of the operands and the sums of a product of 16x16x16. */
export const matrixTypes = `alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;`;

/** WGSL that writes 16 bytes of halves into workgroup memory, which subgroup matrices read as scalars. */
export function unpackInto(name: string): string {
  const halves = ['x', 'y', 'z', 'w']
    .map(
      (part, index) => `  let ${part}2 = bitcast<vec2<f16>>(v.${part});
  ${name}[at + ${2 * index}u] = ${part}2.x;
  ${name}[at + ${2 * index + 1}u] = ${part}2.y;`,
    )
    .join('\n');
  return `fn store_${name}(at: u32, v: vec4u) {\n${halves}\n}`;
}
