import type { NodeOf } from '@dsla/spec';
import { activationFunctions, activationName, type Shape } from './elementwise.js';
import { type Domain, type Element, itemAt, items, type Kernel, kernel, logFunctions } from './kernel.js';

type Activation = NodeOf<'activate'>['fn'];

/** What the shape of the kernel follows from: `items` at a time, `outputs` a subgroup, `lanes` of a subgroup. */
export interface VectorShape {
  readonly items: number;
  readonly outputs: number;
  readonly lanes: number;
}

const vectorSize = 128;

/** Features that one load takes: 16 bytes. The width of x must be a multiple of it. */
export const loadWidth: Readonly<Record<Element, number>> = { f32: 4, f16: 8 };

/** A product of the kernel: its output, and whether it has a bias. */
export interface VectorPart {
  readonly y: Shape;
  readonly bias: boolean;
  /** y = f(x W^T) * (x U^T): the gate of a feed-forward block. */
  readonly gate?: Activation;
}

/**
 * y = x W^T + b for a few items and one or more W: each W is read once for all items, 16 bytes a lane, a subgroup an output row
 * or two. x and W have one type; sums in float32. Buffers: x, then of every part w (u) (bias) y.
 */
export function linearVector(domain: Domain, x: Shape, parts: readonly VectorPart[], shape: VectorShape): Kernel {
  const type = x.type === 'f16' ? 'vec4u' : 'vec4f';
  const buffers = parts.flatMap(({ y, bias, gate }, p) => [
    [`w${p}`, [type, 'read']] as const,
    ...(gate ? [[`u${p}`, [type, 'read']] as const] : []),
    ...(bias ? [[`bias${p}`, ['f32', 'read']] as const] : []),
    [`y${p}`, [y.type, 'write']] as const,
  ]);
  let first = 0;
  const branches = parts.map((part, p) => {
    const begin = first;
    first += vectorGroups(part.y.width, shape);
    return `if (group.x < ${first}u) {\n${product(domain, x, part, p, shape, begin)}\n  }`;
  });
  return kernel({
    name: `linear-vector-${shape.items}${parts.length > 1 ? `-of-${parts.length}` : ''}${parts[0]!.gate ? '-gated' : ''}`,
    buffers: { x: [type, 'read'], ...Object.fromEntries(buffers) },
    module: (x.type === 'f16' ? dot8 : '') + (parts.some(({ gate }) => gate) ? logFunctions + activationFunctions : ''),
    size: vectorSize,
    subgroups: true,
    main: `  let last = ${items[domain]} - 1u;
  ${branches.join(' else ')}`,
  });
}

/** Workgroups along the outputs. */
export function vectorGroups(width: number, { lanes, outputs }: VectorShape): number {
  return Math.ceil(width / ((vectorSize / lanes) * outputs));
}

function product(
  domain: Domain,
  x: Shape,
  { y, bias, gate }: VectorPart,
  p: number,
  { items: count, outputs, lanes }: VectorShape,
  begin: number,
): string {
  const loads = x.width / loadWidth[x.type];
  const rows = [...Array(outputs).keys()];
  const batch = [...Array(count).keys()];
  const factors = gate ? ['w', 'u'] : ['w'];
  const dot = x.type === 'f16' ? 'dot8' : 'dot';
  const sums = batch.flatMap((b) => rows.flatMap((r) => factors.map((f) => ({ b, r, f, name: `s${f}${b}_${r}` }))));
  const value = (b: number, r: number) =>
    gate
      ? `${activationName[gate]}(sw${b}_${r}) * su${b}_${r}`
      : `sw${b}_${r}${bias ? ` + bias${p}[first + ${r}u]` : ''}`;
  return `  let first = ((group.x - ${begin}u) * ${vectorSize / lanes}u + lane / ${lanes}u) * ${outputs}u;
${rows.map((r) => `  let row${r} = min(first + ${r}u, ${y.width - 1}u) * ${loads}u;`).join('\n')}
${batch.map((b) => `  let i${b} = ${itemAt[domain]}(min(group.y * ${count}u + ${b}u, last)).x;`).join('\n')}
${sums.map(({ name }) => `  var ${name} = 0.0;`).join('\n')}
  for (var k = sub_lane; k < ${loads}u; k += ${lanes}u) {
${rows.flatMap((r) => factors.map((f) => `    let ${f}_${r} = ${f}${p}[row${r} + k];`)).join('\n')}
${batch.map((b) => `    let x${b} = x[i${b} * ${loads}u + k];`).join('\n')}
${sums.map(({ b, r, f, name }) => `    ${name} += ${dot}(x${b}, ${f}_${r});`).join('\n')}
  }
${sums.map(({ name }) => `  ${name} = subgroupAdd(${name});`).join('\n')}
  if (sub_lane == 0u) {
${batch
  .flatMap((b) =>
    rows.map(
      (r) => `    if (group.y * ${count}u + ${b}u <= last && first + ${r}u < ${y.width}u) {
      y${p}[i${b} * ${y.width}u + first + ${r}u] = ${y.type}(${value(b, r)});
    }`,
    ),
  )
  .join('\n')}
  }`;
}

const dot8 = `fn dot8(a: vec4u, b: vec4u) -> f32 {
  return dot(unpack2x16float(a.x), unpack2x16float(b.x)) + dot(unpack2x16float(a.y), unpack2x16float(b.y))
    + dot(unpack2x16float(a.z), unpack2x16float(b.z)) + dot(unpack2x16float(a.w), unpack2x16float(b.w));
}
`;
