import { activationFunctions, activationName, type Shape } from './elementwise.js';
import { type Element, float, itemAt, items, type Kernel, kernel, logFunctions } from './kernel.js';
import { blocksAhead, blocksBytes, blocksLoads, blocksLoop, blocksModule, blocksOfX } from './linear-blocks.js';
import { blockSize, type Format, isQuantised } from './quantise.js';
import { firstOf, itemOf, type VectorOptions, type VectorPart, type VectorShape } from './vector-options.js';

/** Features that one load takes: 16 bytes. The width of x must be a multiple of it. */
export const loadWidth: Readonly<Record<Element, number>> = { f32: 4, f16: 8 };

/**
 * y = x W^T + b for a few items and one or more W: each W is read once for all items, 16 bytes a lane at a time. Sums are
 * float32. With `eps`, x is multiplied by the norm's weights as it is read, and the sums by the reciprocal root at the end.
 * Buffers: x, (norm), then of every part (x) w (u) (bias) (z) y.
 */
export function linearVector(options: VectorOptions): Kernel {
  const { domain, x, format, parts, shape, eps } = options;
  const wide = (type: Format) => (type === 'f32' ? 'vec4f' : 'vec4u');
  const buffers = parts.flatMap(({ x: own, y, bias, gate, add }, p) => [
    ...(own ? [[`x${p}`, [wide(own.type), 'read']] as const] : []),
    [`w${p}`, [wide(format), 'read']] as const,
    ...(gate ? [[`u${p}`, [wide(format), 'read']] as const] : []),
    ...(bias ? [[`bias${p}`, ['f32', 'read']] as const] : []),
    ...(add && add !== 'own' ? [[`z${p}`, [add.type, 'read']] as const] : []),
    [`y${p}`, [y.type, 'write']] as const,
  ]);
  const { size, places } = shape;
  const place = places === 1 ? 'group.x' : `group.x % ${places}u * ${placeOf(parts, shape)}u + group.x / ${places}u`;
  const branch = (body: (part: VectorPart, p: number, begin: number) => string) => {
    let first = 0;
    return parts.map((part, p) => {
      const begin = first;
      first += groupsOf(part.y, shape);
      return `if (place < ${first}u) {\n${body(part, p, begin)}\n  }`;
    });
  };
  const ahead = isQuantised(format)
    ? `${blocksAhead(options, format).declarations}
  ${branch((part, p, begin) => `${rowsOf(options, part, begin)}\n${blocksAhead(options, format).loads(part, p)}`).join(' else ')}
${blocksOfX(options)}`
    : '';
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
      ...(parts[0]!.x ? {} : { x: [wide(x.type), 'read'] as const }),
      ...(eps === undefined ? {} : { norm: ['vec4f', 'read'] as const }),
      ...Object.fromEntries(buffers),
    },
    module: `var<workgroup> partial: array<f32, ${(size / shape.lanes) * sumsOf(options)}>;
${isQuantised(format) ? blocksModule(x.width, shape.items) : ''}
${parts.some(({ gate }) => gate) ? logFunctions + activationFunctions : ''}`,
    size,
    subgroups: true,
    main: `${shape.items > 1 ? `  let last = ${items[domain]} - 1u;\n` : ''}  let place = ${place};
  let team = lane / ${shape.lanes * shape.team}u;
  let step = lane / ${shape.lanes}u % ${shape.team}u * ${shape.lanes}u + sub_lane;
${ahead}
  ${branch((part, p, begin) => product(options, part, p, begin)).join(' else ')}`,
  });
}

function groupsOf({ width }: Shape, { size, lanes, team, rows }: VectorShape): number {
  return Math.ceil(width / ((size / lanes / team) * rows));
}

/** Workgroups of a place. */
function placeOf(parts: readonly Pick<VectorPart, 'y'>[], shape: VectorShape): number {
  return Math.ceil(parts.reduce((sum, { y }) => sum + groupsOf(y, shape), 0) / shape.places);
}

/** Workgroups along the outputs. */
export function vectorGroups(parts: readonly Pick<VectorPart, 'y'>[], shape: VectorShape): number {
  return placeOf(parts, shape) * shape.places;
}

/** Sums that a subgroup hands over: [items, rows, factors], then the squares of every item. */
function sumsOf({ parts, shape: { items, rows }, eps }: VectorOptions): number {
  return items * (rows * (parts[0]!.gate ? 2 : 1) + (eps === undefined ? 0 : 1));
}

/** Where the rows of the team begin, in loads. */
function rowsOf({ x, format, shape }: VectorOptions, { y }: VectorPart, begin: number): string {
  const { size, rows, team, lanes } = shape;
  const loads = isQuantised(format) ? blocksLoads(x.width, format) : x.width / loadWidth[x.type];
  const outputs = (size / lanes / team) * rows;
  const each = [...Array(rows).keys()].map(
    (r) => `  let row${r} = min(base + team * ${rows}u + ${r}u, ${y.width - 1}u) * ${loads}u;`,
  );
  return `  let base = (place - ${begin}u) * ${outputs}u;\n${each.join('\n')}`;
}

function product(options: VectorOptions, part: VectorPart, p: number, begin: number): string {
  const { domain, x, format, shape } = options;
  const { size, items: count, rows, team, lanes } = shape;
  const { y, add } = part;
  const outputs = (size / lanes / team) * rows;
  const sums = sumNames(options, part);
  const inside = [
    `lane < ${outputs * count}u`,
    y.width % outputs === 0 ? '' : `o < ${y.width}u`,
    count === 1 ? '' : `group.y * ${count}u + b <= last`,
  ];
  const old = add === 'own' ? `y${p}[at]` : `z${p}[at]`;
  const names = sums.filter((name) => !(isQuantised(format) && name.startsWith('squares')));
  return `${rowsOf(options, part, begin)}
  // The thread's own result; what is added to it is loaded before all else.
  let b = lane / ${outputs}u;
  let o = base + lane % ${outputs}u;
  let inside = ${inside.filter(Boolean).join(' && ')};
  let at = ${itemAt[domain]}(${count === 1 ? 'group.y' : `min(group.y * ${count}u + b, last)`}).x * ${y.width}u + o;
${add ? `  var old = 0.0;\n  if (inside) { old = f32(${old}); }` : ''}
${[...Array(count).keys()].map((b) => `  let i${b} = ${itemOf(options, b)};`).join('\n')}
${names.map((name) => `  var ${name} = 0.0;`).join('\n')}
${isQuantised(format) ? blocksLoop(options, part, p, format) : rounds(options, part, p, x.width / loadWidth[x.type])}
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

/** The loads of the rows, in rounds; adds to the sums. */
function rounds(options: VectorOptions, part: VectorPart, p: number, loads: number): string {
  const { lanes, team, straight } = options.shape;
  const stride = lanes * team;
  if (!straight)
    return `  for (var k = step; k < ${loads}u; k += ${stride}u) {
${roundOf(options, part, p, 'k').flat().join('\n')}
  }`;
  // One after the other, all loads before any use. Beyond the end, the last load comes again, for zeros of x.
  const all = [...Array(Math.ceil(loads / stride)).keys()].map((n) => {
    const whole = (n + 1) * stride <= loads;
    const at = `step + ${n * stride}u`;
    const [before, after] = roundOf(options, part, p, `k${n}`, `r${n}_`, whole ? undefined : `${at} < ${loads}u`);
    return { before: [`    let k${n} = ${whole ? at : `min(${at}, ${loads - 1}u)`};`, ...before], after };
  });
  return [...all.flatMap(({ before }) => before), ...all.flatMap(({ after }) => ['  {', ...after, '  }'])].join('\n');
}

/** A round at load `k` of the rows: its loads, their names with a prefix, and what is done with them; `inside`: x counts. */
function roundOf(
  options: VectorOptions,
  { x: own, gate }: VectorPart,
  p: number,
  k: string,
  prefix = '',
  inside?: string,
): readonly [loads: string[], uses: string[]] {
  const { x, shape, eps } = options;
  const chunks = [...Array(loadWidth[x.type] / 4).keys()];
  const batch = [...Array(shape.items).keys()];
  const factors = gate ? ['w', 'u'] : ['w'];
  const outputs = [...Array(shape.rows).keys()];
  const four = (load: string, c: number) =>
    x.type === 'f32'
      ? load
      : `vec4f(unpack2x16float(${load}.${c ? 'z' : 'x'}), unpack2x16float(${load}.${c ? 'w' : 'y'}))`;
  const first = (b: number) => firstOf(own ?? x, `i${b}`, loadWidth[x.type]);
  const loads = [
    ...outputs.flatMap((r) => factors.map((f) => `let ${prefix}${f}_${r} = ${f}${p}[row${r} + ${k}];`)),
    ...batch.map((b) => `let ${prefix}x_${b} = ${own ? `x${p}` : 'x'}[${first(b)} + ${k}];`),
    ...(eps === undefined ? [] : chunks.map((c) => `let ${prefix}norm${c} = norm[${k} * ${chunks.length}u + ${c}u];`)),
  ];
  const uses = batch.flatMap((b) =>
    chunks.map((c) => {
      const value = four(`${prefix}x_${b}`, c);
      return `var x${b}_${c} = ${inside ? `select(vec4f(), ${value}, ${inside})` : value};`;
    }),
  );
  if (eps !== undefined)
    for (const c of chunks)
      for (const b of batch)
        uses.push(`squares${b} += dot(x${b}_${c}, x${b}_${c});`, `x${b}_${c} *= ${prefix}norm${c};`);
  for (const r of outputs)
    for (const f of factors) {
      const values = chunks.map((c) => `let ${f}${r}_${c} = ${four(`${prefix}${f}_${r}`, c)};`);
      const sums = batch.map(
        (b) => `s${f}${b}_${r} += ${chunks.map((c) => `dot(x${b}_${c}, ${f}${r}_${c})`).join(' + ')};`,
      );
      uses.push(...values, ...sums);
    }
  const indent = (lines: readonly string[]) => lines.map((line) => `    ${line}`);
  return [indent(loads), indent(uses)];
}

/** Adds what the subgroups of a team hold, one thread an item and output. */
function finish(
  { x, format, shape, eps }: VectorOptions,
  { y, bias, gate, add }: VectorPart,
  p: number,
  sums: readonly string[],
): string {
  const { size, items: count, rows, team, lanes } = shape;
  const outputs = (size / lanes / team) * rows;
  const factors = gate ? 2 : 1;
  const sum = (name: string, index: string, from = 'held', of = team) =>
    [
      `    var ${name} = 0.0;`,
      `    for (var m = 0u; m < ${of}u; m++) { ${name} += partial[(${from} + m) * ${sums.length}u + ${index}]; }`,
    ].join('\n');
  // The squares are cut over a team, of quantised x over the whole workgroup.
  const squares: [from: string, of: number] = isQuantised(format) ? ['0u', size / lanes] : ['held', team];
  const root = eps === undefined ? '' : ` * inverseSqrt(squares / ${float(x.width)} + ${float(eps)})`;
  const value = gate
    ? `${activationName[gate]}(own${root}) * (other${root})`
    : `own${root}${bias ? ` + bias${p}[o]` : ''}`;
  return `  if (inside) {
    let held = lane % ${outputs}u / ${rows}u * ${team}u;
    let index = (b * ${rows}u + lane % ${rows}u) * ${factors}u;
${sum('own', 'index')}
${gate ? `${sum('other', 'index + 1u')}\n` : ''}${eps === undefined ? '' : `${sum('squares', `${count * rows * factors}u + b`, ...squares)}\n`}    y${p}[at] = ${y.type}(${add ? 'old + ' : ''}${value});
  }`;
}

/** The cut that was fastest on an H200 (docs/results/webgpu-decode.md), where a workgroup may have `threads`. */
export function vectorShape(
  format: Format,
  items: number,
  lanes: number,
  gated: boolean,
  width: number,
  threads = 256,
): VectorShape {
  if (isQuantised(format)) return { size: 256, items, rows: gated ? 1 : 2, team: 1, lanes, places: 1 };
  const shape = { items, rows: gated || items > 4 ? 1 : 2, lanes, places: 8 };
  if (width <= lanes * loadWidth[format]) return { ...shape, size: 128, team: 1, straight: true };
  if (width % (8 * 8 * lanes) === 0) return { ...shape, size: 256, team: Math.min(8, 256 / lanes) };
  const team = items <= 2 ? teamOf(format, lanes, width, threads) : undefined;
  if (team) return { ...shape, size: team * lanes * Math.max(1, Math.floor(128 / team / lanes)), team, straight: true };
  return { ...shape, size: 128, team: Math.min(4, 128 / lanes) };
}

/** As many subgroups as take the width in at most four rounds and leave few of their lanes idle in the last. */
function teamOf(format: Element, lanes: number, width: number, threads: number): number | undefined {
  const loads = width / loadWidth[format];
  const most = Math.min(16, Math.floor(threads / lanes));
  return [...Array(most + 1).keys()].find((team) => {
    const turns = Math.ceil(loads / lanes / team);
    return team >= 4 && turns <= 4 && turns * team * lanes <= 1.05 * loads;
  });
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
