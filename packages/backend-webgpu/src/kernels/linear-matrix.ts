import type { Shape } from './elementwise.js';
import { type Domain, itemAt, items, type Kernel, kernel } from './kernel.js';
import { halves, load, matrixTypes, multiply, pitchOf, upTo } from './matrices.js';

/** How a product is cut: tiles of a workgroup, features a round (16 or 32), tiles of a subgroup. */
export interface MatrixShape {
  readonly items: number;
  readonly outputs: number;
  readonly depth: number;
  readonly subgroupItems: number;
  readonly subgroupOutputs: number;
  /** Rounds in workgroup memory. */
  readonly rounds: 1 | 2;
}

export const matrixShape: MatrixShape = {
  items: 128,
  outputs: 128,
  depth: 32,
  subgroupItems: 64,
  subgroupOutputs: 64,
  rounds: 1,
};

/** Rows of tiles whose workgroups follow each other, so that they find their operands in the cache. */
const band = 8;

/**
 * y = x W^T + b in float16 with float32 sums, by subgroup matrices; the next round is loaded while this one is multiplied. The
 * width of x is a multiple of 8. One workgroup a tile: [outputs / shape.outputs, items / shape.items].
 */
export function linearMatrix(
  domain: Domain,
  y: Shape,
  x: Shape,
  bias: boolean,
  shape: MatrixShape = matrixShape,
): Kernel {
  const { items: rows, outputs: columns, depth, subgroupItems, subgroupOutputs, rounds } = shape;
  const words = x.width / 2;
  const pitch = pitchOf(depth);
  const side = columns / subgroupOutputs;
  const subgroups = (rows / subgroupItems) * side;
  const width = depth / 2; // words of a row in a round
  const apart = (8 * width) / 32; // distance of the rows that a subgroup loads at once, which are in different banks
  const lines = (32 / width) * subgroups; // rows that all lanes load at once
  const loads = [
    ...upTo(rows / lines).map((n) => ({ of: 'x', to: 'xs', n, name: `x${n}` })),
    ...upTo(columns / lines).map((n) => ({ of: 'w', to: 'ws', n, name: `w${n}` })),
  ];
  const whole = x.width % depth === 0;
  const [down, across] = [upTo(subgroupItems / 16), upTo(subgroupOutputs / 16)];
  const sums = down.flatMap((r) => across.map((c) => ({ r, c, name: `sum${r}_${c}` })));
  const fetch = (at: string) =>
    loads
      .map(({ of, name }) =>
        whole
          ? `    next_${name} = ${of}[row_${name} + ${at}];`
          : `    next_${name} = select(0u, ${of}[row_${name} + min(${at}, ${words - 1}u)], ${at} < ${words}u);`,
      )
      .join('\n');
  const base = (round: string, height: number) => (round === '' ? '' : `${round} * ${height * pitch}u + `);
  const store = (round: string) =>
    loads
      .map(({ to, n, name }) => {
        const start = base(round, to === 'xs' ? rows : columns);
        return `    store_${to}(${start}slot + ${n * lines * pitch}u, next_${name});`;
      })
      .join('\n');
  const now = rounds === 2 ? 'now' : '';
  const step = (d: number) => {
    const left = (r: number) =>
      load('Left', 'row', 'xs', `${base(now, rows)}(row + ${16 * r}u) * ${pitch}u + ${16 * d}u`, pitch);
    const right = (c: number) =>
      load('Right', 'col', 'ws', `${base(now, columns)}(column + ${16 * c}u) * ${pitch}u + ${16 * d}u`, pitch);
    return `    {
${across.map((c) => `      let right${c} = ${right(c)};`).join('\n')}
${down
  .map(
    (r) => `      let left${r} = ${left(r)};
${across.map((c) => `      ${multiply(`sum${r}_${c}`, `left${r}`, `right${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`;
  };
  return kernel({
    name: 'linear-matrix',
    buffers: {
      x: ['u32', 'read'],
      w: ['u32', 'read'],
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      y: [isWide(y) ? 'vec4u' : y.type, 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${halves('xs', rounds * rows * pitch)}
${halves('ws', rounds * columns * pitch)}
var<workgroup> stage: array<f32, ${subgroups * 256}>; // a tile of 16 by 16 for every subgroup`,
    size: 32 * subgroups,
    main: `  let last = ${items[domain]} - 1u;
  let id = group.y * groups.x + group.x;
  let band_first = id / (${band}u * groups.x) * ${band}u;
  let band_height = min(${band}u, groups.y - band_first);
  let in_band = id % (${band}u * groups.x);
  let item_base = (band_first + in_band % band_height) * ${rows}u;
  let out_base = in_band / band_height * ${columns}u;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let row = subgroup / ${side}u * ${subgroupItems}u;
  let column = subgroup % ${side}u * ${subgroupOutputs}u;
  let line = subgroup / ${apart}u * 8u + subgroup % ${apart}u + own / ${width}u * ${apart}u;
  let word = own % ${width}u;
  let slot = line * ${pitch}u + word * 2u;
${loads
  .map(({ of, n, name }) => {
    const at =
      of === 'x'
        ? `${itemAt[domain]}(min(item_base + line + ${n * lines}u, last)).x`
        : `min(out_base + line + ${n * lines}u, ${y.width - 1}u)`;
    return `  let row_${name} = ${at} * ${words}u;\n  var next_${name} = 0u;`;
  })
  .join('\n')}
${sums.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
${fetch('word')}
${store('')}
  workgroupBarrier();
${rounds === 2 ? '  var now = 0u;' : ''}
  for (var k = 0u; k < ${words}u; k += ${width}u) {
    // The loads of the next round are in flight during the products of this one.
    if (k + ${width}u < ${words}u) {
      let at = k + ${width}u + word;
${fetch('at')}
    }
${upTo(depth / 16)
  .map(step)
  .join('\n')}
${rounds === 2 ? '    now = 1u - now;' : '    workgroupBarrier();'}
${store(now)}
    workgroupBarrier();
  }
  let mine = subgroup * 256u;
${sums
  .map(
    ({ r, c, name }) => `  subgroupMatrixStore<row_major>(&stage, mine, ${name}, 16u);
  workgroupBarrier();
${finish(domain, y, bias, `item_base + row + ${16 * r}u`, `out_base + column + ${16 * c}u`)}
  workgroupBarrier();`,
  )
  .join('\n')}`,
  });
}

function isWide(y: Shape): boolean {
  return y.type === 'f16' && y.width % 8 === 0;
}

/** Writes the staged tile: eight neighbours a lane, or one by one. */
function finish(domain: Domain, y: Shape, bias: boolean, item: string, output: string): string {
  if (!isWide(y))
    return `  for (var e = own; e < 256u; e += 32u) {
    let i = ${item} + e / 16u;
    let o = ${output} + e % 16u;
    if (i <= last && o < ${y.width}u) {
      y[${itemAt[domain]}(i).x * ${y.width}u + o] = ${y.type}(stage[mine + e]${bias ? ' + bias[o]' : ''});
    }
  }`;
  const value = (e: number) => `stage[mine + own * 8u + ${e}u]${bias ? ` + bias[o + ${e}u]` : ''}`;
  const word = (e: number) => `pack2x16float(vec2f(${value(e)}, ${value(e + 1)}))`;
  return `  {
    let i = ${item} + own / 2u;
    let o = ${output} + own % 2u * 8u;
    if (i <= last && o < ${y.width}u) {
      y[(${itemAt[domain]}(i).x * ${y.width}u + o) / 8u] = vec4u(${[0, 2, 4, 6].map(word).join(', ')});
    }
  }`;
}
