import { activationFunctions, activationName, type Part } from './elementwise.js';
import { type Domain, itemAt, items, type Kernel, kernel, logFunctions, upTo } from './kernel.js';
import { fours, halves, load, matrixTypes, multiply, pitchOf, storeSums } from './matrices.js';
import { firstOf, type VectorPart } from './vector-options.js';

/**
 * How a product of a few items is cut: a tile of a workgroup, whose subgroups share the width of x, `depth` features each a round;
 * `ahead` rounds are loaded before they are needed.
 */
export interface ThinShape {
  readonly items: number;
  readonly outputs: number;
  readonly subgroups: number;
  readonly depth: number;
  readonly ahead: number;
}

/** Most items of a product of this kind. */
export const thinItems = 64;

/** Outputs of which workgroups with twice as many each are enough for a GPU: x is read half as often. */
const manyOutputs = 16384;

/** For at most `items` items and so many outputs. */
export function thinShape(items: number, outputs = 0): ThinShape {
  const shape = { outputs: 32, subgroups: 8, ahead: 1 };
  if (items > 32) return { ...shape, items: 64, depth: 16 };
  if (items > 16 && outputs >= manyOutputs) return { ...shape, items: 32, outputs: 64, depth: 16 };
  return { ...shape, items: items > 16 ? 32 : 16, depth: 32 };
}

/** A product of the kernel. */
type ThinPart = Pick<VectorPart, 'y' | 'bias' | 'add' | 'gate'>;

/** Matrices of a part, which share the outputs of a workgroup. */
const factorsOf = ({ gate }: ThinPart): number => (gate ? 2 : 1);

/** The n-th load of a lane in a round: from which buffer, to which memory. */
interface Load {
  readonly of: string;
  readonly to: 'xs' | 'ws';
  readonly n: number;
  readonly name: string;
}

/** Workgroups of some parts. */
export function thinGroups(parts: readonly ThinPart[], { outputs }: ThinShape): number {
  return parts.reduce((sum, part) => sum + Math.ceil((part.y.width * factorsOf(part)) / outputs), 0);
}

/**
 * y = x W^T + b, or y = z + x W^T + b, or y = f(x W^T) * (x U^T), in float16 with float32 sums for at most shape.items items and one
 * or more W, by subgroup matrices: W is read once, by whole lines; every subgroup sums over its part of the width. Buffers: x, then
 * of every part w (u) (bias) (z) y. One workgroup shape.outputs outputs of a part, or half of them of each factor.
 */
export function linearThin(domain: Domain, parts: readonly ThinPart[], x: Part, shape: ThinShape): Kernel {
  const { items: rows, outputs: columns, subgroups, depth } = shape;
  const { size, eights, pitch } = roundOf(shape);
  const gated = parts.some(({ gate }) => gate);
  return kernel({
    name: `linear-thin-${rows}${parts.length > 1 ? `-of-${parts.length}` : ''}${gated ? '-gated' : ''}`,
    buffers: {
      x: ['vec4u', 'read'],
      ...Object.fromEntries(
        parts.flatMap(({ y, bias, add, gate }, p) => [
          [`w${p}`, ['vec4u', 'read']] as const,
          ...(gate ? [[`u${p}`, ['vec4u', 'read']] as const] : []),
          ...(bias ? [[`bias${p}`, ['f32', 'read']] as const] : []),
          ...(add && add !== 'own' ? [[`z${p}`, [add.type, 'read']] as const] : []),
          [`y${p}`, [y.type, 'write']] as const,
        ]),
      ),
    },
    matrices: true,
    module: `${matrixTypes}
${halves('xs', rows * pitch)}
${halves('ws', columns * pitch)}
${fours('stage', subgroups * 256)} // a tile of 16 by 16 for every subgroup
${gated ? logFunctions + activationFunctions : ''}`,
    size,
    main: `  let last = ${items[domain]} - 1u;
  let item_base = group.y * ${rows}u;
  let subgroup = lane / 32u;
  let depth = subgroup * ${depth}u;
  let line = lane / ${eights}u;
  var at = lane % ${eights}u;
  let slot = line * ${pitch}u + at * 8u;
  ${branches(parts, shape, (part, p, begin) => product(domain, part, p, begin, x, shape))}`,
  });
}

/** What all subgroups take in a round. */
function roundOf({ subgroups, depth }: ThinShape) {
  const size = 32 * subgroups;
  const features = subgroups * depth;
  const eights = features / 8; // of eight features
  return { size, features, eights, lines: size / eights, pitch: pitchOf(features) }; // lines: that all lanes load at once
}

/** Loads of a round: of the matrices of a part, then of x. */
function loadsOf(part: ThinPart, p: number, shape: ThinShape): Load[] {
  const { items: rows, outputs: columns } = shape;
  const { lines } = roundOf(shape);
  return [
    ...upTo(columns / lines).map((n) => {
      const of = factorsOf(part) * n * lines < columns ? `w${p}` : `u${p}`;
      return { of, to: 'ws' as const, n, name: `w${n}` };
    }),
    ...upTo(rows / lines).map((n) => ({ of: 'x', to: 'xs' as const, n, name: `x${n}` })),
  ];
}

/** WGSL of a part: its sums, from buffers to registers, to workgroup memory, to matrices, and their end. */
function product(domain: Domain, part: ThinPart, p: number, begin: number, x: Part, shape: ThinShape): string {
  const { items: rows, outputs: columns, ahead } = shape;
  const { features, eights, lines, pitch } = roundOf(shape);
  const [width, rounds] = [x.width / 8, Math.ceil(x.width / features)];
  const whole = x.width % features === 0;
  const loads = loadsOf(part, p, shape);
  const [down, turns] = [upTo(rows / 16), upTo(ahead)];
  const own = columns / factorsOf(part);
  const row = ({ to, n }: Load) =>
    to === 'xs'
      ? firstOf(x, `${itemAt[domain]}(min(item_base + line + ${n * lines}u, last)).x`, 8)
      : `min(out_base + line + ${(n * lines) % own}u, ${part.y.width - 1}u) * ${width}u`;
  // Beyond the last round the last one is loaded again, in vain: a branch would make its products wait for the loads.
  const fetch = (turn: number) =>
    loads
      .map(({ of, name }) => {
        const value = `${of}[row_${name} + min(at, ${width - 1}u)]`;
        return `    next${turn}_${name} = ${whole ? value : `select(vec4u(), ${value}, at < ${width}u)`};`;
      })
      .join('\n');
  const store = (turn: number) =>
    loads.map(({ to, n, name }) => `    store_${to}(slot + ${n * lines * pitch}u, next${turn}_${name});`).join('\n');
  const take = (turn: number) => `${store(turn)}
    workgroupBarrier();
${fetch(turn)}
    at += ${eights}u;
${multiplications(shape)}
    workgroupBarrier();`;
  return `  let out_base = (group.x - ${begin}u) * ${own}u;
${loads.map((one) => `  let row_${one.name} = ${row(one)};`).join('\n')}
${down.flatMap((r) => upTo(columns / 16).map((c) => `  var sum${r}_${c} = Sum();`)).join('\n')}
${turns.flatMap((turn) => loads.map(({ name }) => `  var next${turn}_${name} = vec4u();`)).join('\n')}
${turns.map((turn) => `${fetch(turn)}\n  at += ${eights}u;`).join('\n')}
  for (var k = 0u; k < ${rounds}u; k += ${ahead}u) {
${turns.map((turn) => (turn === 0 ? take(turn) : `    if (k + ${turn}u < ${rounds}u) {\n${take(turn)}\n    }`)).join('\n')}
  }
${down.flatMap((r) => upTo(own / 16).map((c) => finish(domain, part, p, shape, r, c))).join('\n')}`;
}

/** WGSL that adds the products of a subgroup's part of a round to its sums. */
function multiplications(shape: ThinShape): string {
  const { pitch } = roundOf(shape);
  const [down, across] = [upTo(shape.items / 16), upTo(shape.outputs / 16)];
  return upTo(shape.depth / 16)
    .map((d) => {
      const at = (line: number) => `${16 * line * pitch}u + depth + ${16 * d}u`;
      return `    {
${across.map((c) => `      let right${c} = ${load('Right', 'col', 'ws', at(c), pitch)};`).join('\n')}
${down
  .map(
    (r) => `      let left${r} = ${load('Left', 'row', 'xs', at(r), pitch)};
${across.map((c) => `      ${multiply(`sum${r}_${c}`, `left${r}`, `right${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`;
    })
    .join('\n');
}

/** Adds what the subgroups have of a tile of 16 by 16 and writes it, four outputs a lane. */
function finish(
  domain: Domain,
  { y, bias, add, gate }: ThinPart,
  p: number,
  { outputs, subgroups }: ThinShape,
  r: number,
  c: number,
): string {
  const stage = (tile: number) => `  ${storeSums('stage', 'subgroup * 256u', `sum${r}_${tile}`, 16)}
  workgroupBarrier();`;
  const added = (to: string) => `for (var n = 0u; n < ${subgroups}u; n++) { ${to} += stage[n * 64u + lane]; }`;
  const other = `gate${r}_${c}`;
  const first = `${stage(c)}
  var ${other} = vec4f();
  if (lane < 64u) { ${added(other)} }
  workgroupBarrier();
`;
  const value = (n: number) => {
    if (gate) return `${activationName[gate]}(${other}[${n}]) * sum[${n}]`;
    return `${add ? `f32(${add === 'own' ? 'y' : 'z'}${p}[at + ${n}u]) + ` : ''}sum[${n}]`;
  };
  return `${gate ? first : ''}${stage(gate ? c + outputs / 32 : c)}
  if (lane < 64u) {
    let i = item_base + ${16 * r}u + lane / 4u;
    let o = out_base + ${16 * c}u + lane % 4u * 4u;
    var sum = ${bias ? `vec4f(${upTo(4).map((n) => `bias${p}[min(o + ${n}u, ${y.width - 1}u)]`)})` : 'vec4f()'};
    ${added('sum')}
    let at = ${itemAt[domain]}(min(i, last)).x * ${y.width}u + o;
${upTo(4)
  .map((n) => `    if (i <= last && o + ${n}u < ${y.width}u) { y${p}[at + ${n}u] = ${y.type}(${value(n)}); }`)
  .join('\n')}
  }
  workgroupBarrier();`;
}

/** A body for every part: a load in a branch of its own would wait for the one before. */
function branches(
  parts: readonly ThinPart[],
  shape: ThinShape,
  body: (part: ThinPart, p: number, begin: number) => string,
): string {
  let end = 0;
  return parts
    .map((part, p) => {
      const begin = end;
      end += thinGroups([part], shape);
      return `if (group.x < ${end}u) {\n${body(part, p, begin)}\n  }`;
    })
    .join(' else ');
}
