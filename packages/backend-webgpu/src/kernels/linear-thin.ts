import type { Shape } from './elementwise.js';
import { type Domain, itemAt, items, type Kernel, kernel } from './kernel.js';
import { fours, halves, load, matrixTypes, multiply, pitchOf, storeSums, upTo } from './matrices.js';

/** How a product of a few items is cut: a tile of a workgroup, whose subgroups share the width of x, `depth` features each a round. */
export interface ThinShape {
  readonly items: number;
  readonly outputs: number;
  readonly subgroups: number;
  readonly depth: number;
}

/** Most items of a product of this kind. */
export const thinItems = 64;

/** For at most `items` items. */
export function thinShape(items: number): ThinShape {
  const shape = { outputs: 32, subgroups: 8 };
  if (items > 32) return { ...shape, items: 64, depth: 16 };
  return { ...shape, items: items > 16 ? 32 : 16, depth: 32 };
}

/** Rounds that are loaded before they are needed: with fewer, a round waits for its loads. */
const ahead = 2;

/**
 * y = x W^T + b in float16 with float32 sums for at most shape.items items, by subgroup matrices: W is read once, by whole
 * lines; every subgroup sums over its part of the width. One workgroup shape.outputs outputs.
 */
export function linearThin(domain: Domain, y: Shape, x: Shape, bias: boolean, shape: ThinShape): Kernel {
  const { items: rows, outputs: columns, subgroups, depth } = shape;
  const size = 32 * subgroups;
  const round = subgroups * depth; // features
  const [eights, width] = [round / 8, x.width / 8]; // of eight features: in a round, and in a row of x
  const lines = size / eights; // that all lanes load at once
  const pitch = pitchOf(round);
  const whole = x.width % round === 0;
  const loads = [
    ...upTo(columns / lines).map((n) => ({ of: 'w', n, name: `w${n}` })),
    ...upTo(rows / lines).map((n) => ({ of: 'x', n, name: `x${n}` })),
  ];
  const [down, across] = [upTo(rows / 16), upTo(columns / 16)];
  const sums = down.flatMap((r) => across.map((c) => ({ r, c, name: `sum${r}_${c}` })));
  const rounds = Math.ceil(x.width / round);
  // Beyond the last round the last one is loaded again, in vain: a branch would make its products wait for the loads.
  const fetch = (turn: number) =>
    loads
      .map(({ of, name }) => {
        const value = `${of}[row_${name} + min(at, ${width - 1}u)]`;
        return `    next${turn}_${name} = ${whole ? value : `select(vec4u(), ${value}, at < ${width}u)`};`;
      })
      .join('\n');
  const store = (turn: number) =>
    loads.map(({ of, n, name }) => `    store_${of}s(slot + ${n * lines * pitch}u, next${turn}_${name});`).join('\n');
  const step = (d: number) => {
    const at = (line: number) => `${16 * line * pitch}u + part + ${16 * d}u`;
    return `    {
${across.map((c) => `      let right${c} = ${load('Right', 'col', 'ws', at(c), pitch)};`).join('\n')}
${down
  .map(
    (r) => `      let left${r} = ${load('Left', 'row', 'xs', at(r), pitch)};
${across.map((c) => `      ${multiply(`sum${r}_${c}`, `left${r}`, `right${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`;
  };
  const turns = upTo(ahead);
  const take = (turn: number) => `${store(turn)}
    workgroupBarrier();
${fetch(turn)}
    at += ${eights}u;
${upTo(depth / 16)
  .map(step)
  .join('\n')}
    workgroupBarrier();`;
  return kernel({
    name: `linear-thin-${rows}`,
    buffers: {
      x: ['vec4u', 'read'],
      w: ['vec4u', 'read'],
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      y: [y.type, 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${halves('xs', rows * pitch)}
${halves('ws', columns * pitch)}
${fours('stage', subgroups * 256)} // a tile of 16 by 16 for every subgroup`,
    size,
    main: `  let last = ${items[domain]} - 1u;
  let item_base = group.y * ${rows}u;
  let out_base = group.x * ${columns}u;
  let subgroup = lane / 32u;
  let part = subgroup * ${depth}u;
  let line = lane / ${eights}u;
  var at = lane % ${eights}u;
  let slot = line * ${pitch}u + at * 8u;
${loads
  .map(({ of, n, name }) => {
    const at =
      of === 'x'
        ? `${itemAt[domain]}(min(item_base + line + ${n * lines}u, last)).x`
        : `min(out_base + line + ${n * lines}u, ${y.width - 1}u)`;
    return `  let row_${name} = ${at} * ${width}u;`;
  })
  .join('\n')}
${sums.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
${turns.flatMap((turn) => loads.map(({ name }) => `  var next${turn}_${name} = vec4u();`)).join('\n')}
${turns.map((turn) => `${fetch(turn)}\n  at += ${eights}u;`).join('\n')}
  for (var k = 0u; k < ${rounds}u; k += ${ahead}u) {
${turns.map((turn) => (turn === 0 ? take(turn) : `    if (k + ${turn}u < ${rounds}u) {\n${take(turn)}\n    }`)).join('\n')}
  }
${sums
  .map(
    ({ r, c, name }) => `  ${storeSums('stage', 'subgroup * 256u', name, 16)}
  workgroupBarrier();
  for (var e = lane; e < 256u; e += ${size}u) {
    let i = item_base + ${16 * r}u + e / 16u;
    let o = out_base + ${16 * c}u + e % 16u;
    var sum = 0.0;
    for (var n = 0u; n < ${subgroups}u; n++) { sum += stage[n * 64u + e / 4u][e % 4u]; }
    if (i <= last && o < ${y.width}u) { y[${itemAt[domain]}(i).x * ${y.width}u + o] = ${y.type}(sum${bias ? ' + bias[o]' : ''}); }
  }
  workgroupBarrier();`,
  )
  .join('\n')}`,
  });
}
