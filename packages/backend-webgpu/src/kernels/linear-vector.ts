import { activationFunctions, activationName, type Shape } from './elementwise.js';
import { type Element, float, itemAt, items, type Kernel, kernel, logFunctions } from './kernel.js';
import { blocksBytes, blocksLoads, blocksLoop, blocksModule, blocksOfX } from './linear-blocks.js';
import { blockSize, type Format, isQuantised } from './quantise.js';
import type { VectorOptions, VectorPart, VectorShape } from './vector-options.js';

const size = 128;

/** Features that one load takes: 16 bytes. The width of x must be a multiple of it. */
export const loadWidth: Readonly<Record<Element, number>> = { f32: 4, f16: 8 };

/**
 * y = x W^T + b for a few items and one or more W: each W is read once for all items, 16 bytes a lane at a time. Sums are
 * float32. With `eps`, x is multiplied by the norm's weights as it is read, and the sums by the reciprocal root at the end.
 * Buffers: x, (norm), then of every part w (u) (bias) (z) y.
 */
export function linearVector(options: VectorOptions): Kernel {
  const { domain, x, format, parts, shape, eps } = options;
  const wide = (type: Format) => (type === 'f32' ? 'vec4f' : 'vec4u');
  const buffers = parts.flatMap(({ y, bias, gate, add }, p) => [
    [`w${p}`, [wide(format), 'read']] as const,
    ...(gate ? [[`u${p}`, [wide(format), 'read']] as const] : []),
    ...(bias ? [[`bias${p}`, ['f32', 'read']] as const] : []),
    ...(add && add !== 'own' ? [[`z${p}`, [add.type, 'read']] as const] : []),
    [`y${p}`, [y.type, 'write']] as const,
  ]);
  let first = 0;
  const branches = parts.map((part, p) => {
    const begin = first;
    first += vectorGroups(part.y.width, shape);
    return `if (group.x < ${first}u) {\n${product(options, part, p, begin)}\n  }`;
  });
  const marks = [
    parts.length > 1 && `of-${parts.length}`,
    eps !== undefined && 'normed',
    parts[0]!.gate && 'gated',
    parts[0]!.add && 'added',
    isQuantised(format) && format,
  ];
  return kernel({
    name: ['linear-vector', shape.items, ...marks.filter(Boolean)].join('-'),
    buffers: {
      x: [wide(x.type), 'read'],
      ...(eps === undefined ? {} : { norm: ['vec4f', 'read'] as const }),
      ...Object.fromEntries(buffers),
    },
    module: `var<workgroup> partial: array<f32, ${(size / shape.lanes) * sumsOf(options)}>;
${isQuantised(format) ? blocksModule(x.width, shape.items) : ''}
${parts.some(({ gate }) => gate) ? logFunctions + activationFunctions : ''}`,
    size,
    subgroups: true,
    main: `  let last = ${items[domain]} - 1u;
  let team = lane / ${shape.lanes * shape.team}u;
  let step = lane / ${shape.lanes}u % ${shape.team}u * ${shape.lanes}u + sub_lane;
${isQuantised(format) ? blocksOfX(options, size) : ''}
  ${branches.join(' else ')}`,
  });
}

/** Workgroups along the outputs. */
export function vectorGroups(width: number, { lanes, team, rows }: VectorShape): number {
  return Math.ceil(width / ((size / lanes / team) * rows));
}

/** Sums that a subgroup hands over: [items, rows, factors], then the squares of every item. */
function sumsOf({ parts, shape: { items, rows }, eps }: VectorOptions): number {
  return items * (rows * (parts[0]!.gate ? 2 : 1) + (eps === undefined ? 0 : 1));
}

function product(options: VectorOptions, part: VectorPart, p: number, begin: number): string {
  const { domain, x, format, shape } = options;
  const { items: count, rows, team, lanes } = shape;
  const { y } = part;
  const loads = isQuantised(format) ? blocksLoads(x.width, format) : x.width / loadWidth[x.type];
  const teams = size / lanes / team;
  const batch = [...Array(count).keys()];
  const sums = sumNames(options, part);
  return `  let base = (group.x - ${begin}u) * ${teams * rows}u;
${[...Array(rows).keys()].map((r) => `  let row${r} = min(base + team * ${rows}u + ${r}u, ${y.width - 1}u) * ${loads}u;`).join('\n')}
${batch.map((b) => `  let i${b} = ${itemAt[domain]}(min(group.y * ${count}u + ${b}u, last)).x;`).join('\n')}
${sums
  .filter((name) => !(isQuantised(format) && name.startsWith('squares')))
  .map((name) => `  var ${name} = 0.0;`)
  .join('\n')}
${isQuantised(format) ? blocksLoop(options, part, p, format) : loop(options, part, p, loads)}
${sums.map((name, n) => `  { let sum = subgroupAdd(${name}); if (sub_lane == 0u) { partial[lane / ${lanes}u * ${sums.length}u + ${n}u] = sum; } }`).join('\n')}
  workgroupBarrier();
${finish(options, part, p, sums)}`;
}

function sumNames({ shape: { items: count, rows }, eps }: VectorOptions, { gate }: VectorPart): string[] {
  const factors = gate ? ['w', 'u'] : ['w'];
  const each = [...Array(count).keys()].flatMap((b) =>
    [...Array(rows).keys()].flatMap((r) => factors.map((f) => `s${f}${b}_${r}`)),
  );
  return eps === undefined ? each : [...each, ...[...Array(count).keys()].map((b) => `squares${b}`)];
}

/** The loop over the loads of the rows; adds to the sums. */
function loop({ x, shape, eps }: VectorOptions, { gate }: VectorPart, p: number, loads: number): string {
  const chunks = [...Array(loadWidth[x.type] / 4).keys()];
  const batch = [...Array(shape.items).keys()];
  const factors = gate ? ['w', 'u'] : ['w'];
  const outputs = [...Array(shape.rows).keys()];
  const four = (load: string, c: number) =>
    x.type === 'f32'
      ? load
      : `vec4f(unpack2x16float(${load}.${c ? 'z' : 'x'}), unpack2x16float(${load}.${c ? 'w' : 'y'}))`;
  const lines = [
    // Before any use, so that all are on their way.
    ...outputs.flatMap((r) => factors.map((f) => `let ${f}_${r} = ${f}${p}[row${r} + k];`)),
    ...batch.map((b) => `let x${b} = x[i${b} * ${x.width / loadWidth[x.type]}u + k];`),
    ...batch.flatMap((b) => chunks.map((c) => `var x${b}_${c} = ${four(`x${b}`, c)};`)),
  ];
  if (eps !== undefined)
    for (const c of chunks) {
      lines.push(`let norm${c} = norm[k * ${chunks.length}u + ${c}u];`);
      for (const b of batch) lines.push(`squares${b} += dot(x${b}_${c}, x${b}_${c});`, `x${b}_${c} *= norm${c};`);
    }
  for (const r of outputs)
    for (const f of factors) {
      const values = chunks.map((c) => `let ${f}${r}_${c} = ${four(`${f}_${r}`, c)};`);
      const sums = batch.map(
        (b) => `s${f}${b}_${r} += ${chunks.map((c) => `dot(x${b}_${c}, ${f}${r}_${c})`).join(' + ')};`,
      );
      lines.push(...values, ...sums);
    }
  return `  for (var k = step; k < ${loads}u; k += ${shape.lanes * shape.team}u) {
${lines.map((line) => `    ${line}`).join('\n')}
  }`;
}

/** Adds what the subgroups of a team hold, one thread an item and output. */
function finish(
  { domain, x, format, shape, eps }: VectorOptions,
  part: VectorPart,
  p: number,
  sums: readonly string[],
): string {
  const { items: count, rows, team, lanes } = shape;
  const { y, bias, gate, add } = part;
  const outputs = (size / lanes / team) * rows;
  const factors = gate ? 2 : 1;
  const sum = (name: string, index: string, from = 'held', of = team) =>
    [
      `      var ${name} = 0.0;`,
      `      for (var m = 0u; m < ${of}u; m++) { ${name} += partial[(${from} + m) * ${sums.length}u + ${index}]; }`,
    ].join('\n');
  // The squares are cut over a team, of quantised x over the whole workgroup.
  const squares: [from: string, of: number] = isQuantised(format) ? ['0u', size / lanes] : ['held', team];
  const root = eps === undefined ? '' : ` * inverseSqrt(squares / ${float(x.width)} + ${float(eps)})`;
  const value = gate
    ? `${activationName[gate]}(own${root}) * (other${root})`
    : `own${root}${bias ? ` + bias${p}[o]` : ''}`;
  const old = add === 'own' ? `f32(y${p}[at]) + ` : add ? `f32(z${p}[at]) + ` : '';
  return `  for (var e = lane; e < ${outputs * count}u; e += ${size}u) {
    let b = e / ${outputs}u;
    let o = base + e % ${outputs}u;
    let held = e % ${outputs}u / ${rows}u * ${team}u;
    let index = (b * ${rows}u + e % ${rows}u) * ${factors}u;
    if (group.y * ${count}u + b <= last && o < ${y.width}u) {
${sum('own', 'index')}
${gate ? `${sum('other', 'index + 1u')}\n` : ''}${eps === undefined ? '' : `${sum('squares', `${count * rows * factors}u + b`, ...squares)}\n`}      let at = ${itemAt[domain]}(group.y * ${count}u + b).x * ${y.width}u + o;
      y${p}[at] = ${y.type}(${old}${value});
    }
  }`;
}

/** The cut that was fastest on an H200 (docs/results/webgpu.md). */
export function vectorShape(format: Format, items: number, lanes: number, gated: boolean): VectorShape {
  if (isQuantised(format)) return { items, rows: gated ? 2 : 4, team: 1, lanes };
  return { items, rows: gated || items > 4 ? 1 : 2, team: Math.min(4, size / lanes), lanes };
}

/** How many items a kernel may take at a time: quantised ones lie in workgroup memory. */
export function vectorItems(format: Format, width: number): readonly number[] {
  if (!isQuantised(format)) return [1, 2, 4, 8];
  return [1, 2].filter((items) => blocksBytes(width, items) <= blocksLimit);
}

/** Bytes of workgroup memory for x that every device has, beside what the sums take. */
const blocksLimit = 15 * 1024;

/** Whether products of so wide an x have kernels. */
export function hasVector(format: Format, x: Shape): boolean {
  if (isQuantised(format)) return x.width % blockSize === 0 && vectorItems(format, x.width).length > 0;
  return format === x.type && x.width % loadWidth[x.type] === 0;
}
