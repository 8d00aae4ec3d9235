import type { NodeOf } from '@dsla/spec';
import { activationFunctions, activationName, type Shape } from './elementwise.js';
import { type Domain, float, itemAt, items, type Kernel, kernel, logFunctions } from './kernel.js';
import { blockSize, type Format, isQuantised, mantissa, offsetOf, scaleOf, valuesOf } from './quantise.js';

type Activation = NodeOf<'activate'>['fn'];

/**
 * How the work is cut: `items` at a time; `rows` outputs a team of `team` subgroups of `lanes`, which share the width of x.
 */
export interface VectorShape {
  readonly items: number;
  readonly rows: number;
  readonly team: number;
  readonly lanes: number;
}

const size = 128;

/** Features that one load takes: 16 bytes. The width of x must be a multiple of it. */
export const loadWidth: Readonly<Record<Format, number>> = { f32: 4, f16: 8, q8: 16, q4: 32 };

/** A product of the kernel: its output, and whether it has a bias. */
export interface VectorPart {
  readonly y: Shape;
  readonly bias: boolean;
  /** y = f(x W^T) * (x U^T): the gate of a feed-forward block. */
  readonly gate?: Activation | undefined;
  /** y = z + x W^T with another value z, or y += x W^T. */
  readonly add?: Shape | 'own' | undefined;
}

export interface VectorOptions {
  readonly domain: Domain;
  readonly x: Shape;
  /** Of the matrices. */
  readonly format: Format;
  readonly parts: readonly VectorPart[];
  readonly shape: VectorShape;
  /** Takes the RMS norm of x instead of x. */
  readonly eps?: number | undefined;
}

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
${parts.some(({ gate }) => gate) ? logFunctions + activationFunctions : ''}`,
    size,
    subgroups: true,
    main: `  let last = ${items[domain]} - 1u;
  let team = lane / ${shape.lanes * shape.team}u;
  let step = lane / ${shape.lanes}u % ${shape.team}u * ${shape.lanes}u + sub_lane;
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
  const loads = x.width / loadWidth[format];
  const stride = lanes * team;
  const teams = size / stride;
  const batch = [...Array(count).keys()];
  const sums = sumNames(options, part);
  return `  let base = (group.x - ${begin}u) * ${teams * rows}u;
${[...Array(rows).keys()].map((r) => `  let row${r} = min(base + team * ${rows}u + ${r}u, ${y.width - 1}u) * ${loads}u;`).join('\n')}
${batch.map((b) => `  let i${b} = ${itemAt[domain]}(min(group.y * ${count}u + ${b}u, last)).x;`).join('\n')}
${sums.map((name) => `  var ${name} = 0.0;`).join('\n')}
  for (var k = step; k < ${loads}u; k += ${stride}u) {
${accumulate(options, part, p)}
  }
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

/** Adds the products of one load of every row. */
function accumulate(options: VectorOptions, { gate, y }: VectorPart, p: number): string {
  const { x, format, shape, eps } = options;
  const chunks = [...Array(loadWidth[format] / 4).keys()];
  const batch = [...Array(shape.items).keys()];
  const at = `k * ${chunks.length}u`;
  const read = batch.flatMap((b) => {
    if (x.type === 'f32')
      return chunks.map((c) => `      var x${b}_${c} = x[i${b} * ${x.width / 4}u + ${at} + ${c}u];`);
    return chunks.map((c) =>
      c % 2 === 0
        ? `      let h${b}_${c} = x[i${b} * ${x.width / 8}u + (${at}) / 2u + ${c / 2}u];
      var x${b}_${c} = vec4f(unpack2x16float(h${b}_${c}.x), unpack2x16float(h${b}_${c}.y));`
        : `      var x${b}_${c} = vec4f(unpack2x16float(h${b}_${c - 1}.z), unpack2x16float(h${b}_${c - 1}.w));`,
    );
  });
  const normed =
    eps === undefined
      ? []
      : chunks.flatMap((c) => [
          `      let norm${c} = norm[${at} + ${c}u];`,
          ...batch.map((b) => `      squares${b} += dot(x${b}_${c}, x${b}_${c}); x${b}_${c} *= norm${c};`),
        ]);
  const plain = batch.map(
    (b) =>
      `      let sum${b} = ${isQuantised(format) ? chunks.map((c) => `dot(x${b}_${c}, vec4f(1.0))`).join(' + ') : ''};`,
  );
  const factors = gate ? ['w', 'u'] : ['w'];
  const outputs = [...Array(shape.rows).keys()];
  // Before any use, so that all are on their way.
  const loads = outputs.flatMap((r) => factors.map((f) => `      let ${f}_${r} = ${f}${p}[row${r} + k];`));
  const rows = outputs.flatMap((r) =>
    factors.map((f) => {
      const values = valuesOf(format, `${f}_${r}`);
      const lines = chunks.map((c) => `        let v${c} = ${values[c]};`);
      const dots = (b: number) => chunks.map((c) => `dot(x${b}_${c}, v${c})`).join(' + ');
      if (!isQuantised(format)) lines.push(...batch.map((b) => `        s${f}${b}_${r} += ${dots(b)};`));
      else {
        const block = `(row${r} + k) / ${blockSize / loadWidth[format]}u`;
        const scale = scaleOf(format, `${f}${p}`, 'block', y.width * x.width);
        lines.push(
          `        let block = ${block};`,
          `        let scale = ${scale};`,
          ...batch.map(
            (b) => `        s${f}${b}_${r} += scale * (${dots(b)} - ${float(mantissa + offsetOf[format])} * sum${b});`,
          ),
        );
      }
      return `      {\n${lines.join('\n')}\n      }`;
    }),
  );
  return [...loads, ...read, ...normed, ...(isQuantised(format) ? plain : []), ...rows].join('\n');
}

/** Adds what the subgroups of a team hold, one thread an item and output. */
function finish(
  { domain, x, shape, eps }: VectorOptions,
  part: VectorPart,
  p: number,
  sums: readonly string[],
): string {
  const { items: count, rows, team, lanes } = shape;
  const { y, bias, gate, add } = part;
  const outputs = (size / lanes / team) * rows;
  const factors = gate ? 2 : 1;
  const sum = (name: string, index: string) =>
    [
      `      var ${name} = 0.0;`,
      `      for (var m = 0u; m < ${team}u; m++) { ${name} += partial[(held + m) * ${sums.length}u + ${index}]; }`,
    ].join('\n');
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
${gate ? `${sum('other', 'index + 1u')}\n` : ''}${eps === undefined ? '' : `${sum('squares', `${count * rows * factors}u + b`)}\n`}      let at = ${itemAt[domain]}(group.y * ${count}u + b).x * ${y.width}u + o;
      y${p}[at] = ${y.type}(${old}${value});
    }
  }`;
}

/** How many items a kernel may take; fewer on narrow subgroups, which are software that compiles slowly. */
export function vectorItems(format: Format, lanes: number): readonly number[] {
  return lanes < 16 && isQuantised(format) ? [1, 2] : [1, 2, 4, 8];
}

/** The cut that was fastest on an H200 (docs/results/webgpu.md). */
export function vectorShape(items: number, lanes: number, gated: boolean): VectorShape {
  return { items, rows: gated || items > 4 ? 1 : 2, team: Math.min(4, size / lanes), lanes };
}
