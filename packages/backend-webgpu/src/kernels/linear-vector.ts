import { activationFunctions, activationName, type Shape } from './elementwise.js';
import { float, itemAt, items, type Kernel, kernel, logFunctions, upTo } from './kernel.js';
import { blockSize, type Format, isQuantised, scaleWord } from './quantise.js';
import { addLoad, featuresOfLane, isWhole, laneModule, loadsOfLane } from './vector-lane.js';
import { loadType, loadWidth, type VectorOptions, type VectorPart, type VectorShape } from './vector-options.js';
import { isStaged, stageFeatures, stageLoads, stageModule } from './vector-stage.js';

/**
 * y = x W^T + b for a few items and one or more W: each W is read once for all items. The lanes of a workgroup keep x, a part of
 * its width each, while the rows of W go past, 16 bytes a lane at a time. Sums are float32. With `eps`, x is multiplied by the
 * norm's weights, and the sums by the reciprocal root at the end. Buffers: x, (norm), then of every part (x) w (u) (bias) (z) y.
 */
export function linearVector(options: VectorOptions): Kernel {
  const { domain, x, format, parts, shape, eps } = options;
  const buffers = parts.flatMap(({ x: own, y, bias, gate, add }, p) => [
    ...(own ? [[`x${p}`, [loadType(own.type), 'read']] as const] : []),
    [`w${p}`, [loadType(format), 'read']] as const,
    ...(gate ? [[`u${p}`, [loadType(format), 'read']] as const] : []),
    ...(bias ? [[`bias${p}`, ['f32', 'read']] as const] : []),
    ...(add && add !== 'own' ? [[`z${p}`, [add.type, 'read']] as const] : []),
    [`y${p}`, [y.type, 'write']] as const,
  ]);
  const { size, places, lanes, teams = 1 } = shape;
  const place = places === 1 ? 'group.x' : `group.x % ${places}u * ${placeOf(parts, shape)}u + group.x / ${places}u`;
  const marks = [
    parts.length > 1 && `of-${parts.length}`,
    eps !== undefined && 'normed',
    parts[0]!.gate && 'gated',
    parts[0]!.add && 'added',
    isQuantised(format) && format,
  ];
  let first = 0;
  const branches = parts.map((part, p) => {
    const begin = first;
    first += groupsOf(part.y, shape);
    return `if (place < ${first}u) {\n${product(options, part, p, begin)}\n  }`;
  });
  return kernel({
    name: ['linear-vector', shape.items, ...marks.filter(Boolean)].join('-'),
    buffers: {
      ...(parts[0]!.x ? {} : { x: [loadType(x.type), 'read'] as const }),
      ...(eps === undefined ? {} : { norm: ['vec4f', 'read'] as const }),
      ...Object.fromEntries(buffers),
    },
    module: `var<workgroup> partial: array<f32, ${((teams * size) / lanes) * sumsOf(options)}>; // [teams, sums, subgroups], squares
${isStaged(options) ? stageModule(options) : ''}
${isQuantised(format) ? laneModule : ''}
${parts.some(({ gate }) => gate) ? logFunctions + activationFunctions : ''}`,
    size: teams * size,
    subgroups: true,
    main: `${shape.items > 1 ? `  let last = ${items[domain]} - 1u;\n` : ''}  let place = ${place};
  ${branches.join(' else ')}`,
  });
}

function groupsOf({ width }: Shape, { rows, teams = 1 }: VectorShape): number {
  return Math.ceil(width / rows / teams);
}

/** Workgroups of a place. */
function placeOf(parts: readonly Pick<VectorPart, 'y'>[], shape: VectorShape): number {
  return Math.ceil(parts.reduce((sum, { y }) => sum + groupsOf(y, shape), 0) / shape.places);
}

/** Workgroups along the outputs. */
export function vectorGroups(parts: readonly Pick<VectorPart, 'y'>[], shape: VectorShape): number {
  return placeOf(parts, shape) * shape.places;
}

const factorsOf = ({ gate }: VectorPart): readonly ('w' | 'u')[] => (gate ? ['w', 'u'] : ['w']);

/** Sums of a team: [rows, factors, items]. */
function rowSums({ parts, shape: { items, rows } }: VectorOptions): number {
  return items * rows * factorsOf(parts[0]!).length;
}

/** With the squares of every item. */
function sumsOf(options: VectorOptions): number {
  return rowSums(options) + (options.eps === undefined ? 0 : options.shape.items);
}

/** WGSL of where the sums of a team begin. */
function teamSums(options: VectorOptions): string {
  return isStaged(options) ? `team * ${rowSums(options)}u + ` : '';
}

function product(options: VectorOptions, part: VectorPart, p: number, begin: number): string {
  const { domain, x, format, shape, eps } = options;
  const { size, items: count, rows, ahead, lanes, teams = 1 } = shape;
  const loads = x.width / loadWidth[format];
  const lane = upTo(loadsOfLane(options));
  const batch = upTo(count);
  const column = (n: number) =>
    isWhole(options, n)
      ? [`let column${n} = lane + ${n * size}u;`]
      : [
          `let inside${n} = lane + ${n * size}u < ${loads}u;`,
          `let column${n} = min(lane + ${n * size}u, ${loads - 1}u);`,
        ];
  const item = (b: number) =>
    `${itemAt[domain]}(${count === 1 ? 'group.y' : `min(group.y * ${count}u + ${b}u, last)`}).${x.last ? 'w' : 'x'}`;
  const streams = streamsOf(options, part);
  const type = loadType(format);
  const sums = upTo(ahead).flatMap((r) => factorsOf(part).flatMap((f) => batch.map((b) => `${f}${r}_sum${b}`)));
  const staged = isStaged(options);
  const thread = staged ? 'thread' : 'lane';
  const squares = batch.map(
    (b) =>
      `{ let sum = subgroupAdd(squares${b}); if (sub_lane == 0u) { partial[${((rowSums(options) + b) * teams * size) / lanes}u + ${thread} / ${lanes}u] = sum; } }`,
  );
  const body = (t: string, more?: string) => [
    ...sums.map((name) => `var ${name} = 0.0;`),
    ...upTo(ahead).flatMap((r) => turn(options, part, p, r, more)),
    ...meet(sums, lanes, (index, value) => {
      const at = rows === ahead ? index : `${t} * ${sums.length / ahead}u + ${index}`;
      return `partial[(${teamSums(options)}${at}) * ${size / lanes}u + lane / ${lanes}u] = ${value};`;
    }),
  ];
  return [
    ...(staged ? ['let thread = lane;', `let team = thread / ${size}u;`, `let lane = thread % ${size}u;`] : []),
    `let base = ${staged ? `((place - ${begin}u) * ${teams}u + team)` : `(place - ${begin}u)`} * ${rows}u;`,
    ...lane.flatMap(column),
    // Almost always the item is this one: its loads do not wait for the batch to say so.
    ...(staged ? stageLoads(options, part, p, 'group.y', true) : []),
    // Rows have an even number of blocks: a lane's are all first or all second of a word of scales.
    ...(isQuantised(format) ? lane.map((n) => `let half${n} = ${blockOf(format, `column${n}`)} % 2u * 16u;`) : []),
    // Matrices come from afar: their loads begin before all else.
    ...streams.map(({ name }) => `var ${name}: ${type};${isQuantised(format) ? ` var ${name}_scale: u32;` : ''}`),
    ...upTo(ahead).flatMap((r) => fetch(options, part, p, r, `base + ${r}u`)),
    ...batch.map((b) => `let i${b} = ${item(b)};`),
    ...(staged ? ['if (i0 != group.y) {', ...stageLoads(options, part, p, 'i0', false), '}'] : []),
    ...old(options, part, p),
    ...(staged ? stageFeatures(options) : featuresOfLane(options, part, p)),
    ...(rows === ahead
      ? body('0u')
      : [`for (var t = 0u; t < ${rows}u; t += ${ahead}u) {`, ...body('t', `t + ${ahead}u < ${rows}u`), '}']),
    ...(eps === undefined ? [] : squares),
    'workgroupBarrier();',
    ...finish(options, part, p),
  ]
    .map((line) => `    ${line}`)
    .join('\n');
}

interface Stream {
  readonly name: string;
  readonly factor: 'w' | 'u';
  /** Which of the rows that are on their way, and which load of it. */
  readonly r: number;
  readonly n: number;
}

/** The loads that a lane has on their way. */
function streamsOf(options: VectorOptions, part: VectorPart): Stream[] {
  return upTo(options.shape.ahead).flatMap((r) =>
    factorsOf(part).flatMap((factor) =>
      upTo(loadsOfLane(options)).map((n) => ({ name: `${factor}${r}_${n}`, factor, r, n })),
    ),
  );
}

/** Loads a row into the variables of the `r`-th on its way. */
function fetch(options: VectorOptions, part: VectorPart, p: number, r: number, row: string): string[] {
  const { x, format, shape } = options;
  const { y } = part;
  const at = y.width % (shape.rows * (shape.teams ?? 1)) === 0 ? row : `min(${row}, ${y.width - 1}u)`;
  const each = streamsOf(options, part).filter((stream) => stream.r === r);
  return [
    `{ let row = ${at};`,
    ...each.flatMap(({ name, factor, n }) => [
      `  ${name} = ${factor}${p}[row * ${x.width / loadWidth[format]}u + column${n}];`,
      ...(isQuantised(format)
        ? [
            `  ${name}_scale = ${scaleWord(format, `${factor}${p}`, 'row', blockOf(format, `column${n}`), x.width, y.width)};`,
          ]
        : []),
    ]),
    '}',
  ];
}

/** WGSL of the block of a load. */
function blockOf(format: Format, load: string): string {
  return `(${load} / ${blockSize / loadWidth[format]}u)`;
}

/** Takes the `r`-th row on its way: adds to its sums, after a later one is sent for if there is `more`. */
function turn(options: VectorOptions, part: VectorPart, p: number, r: number, more?: string): string[] {
  const { format, shape } = options;
  const { items: count, ahead } = shape;
  const each = streamsOf(options, part).filter((stream) => stream.r === r);
  const scale = (name: string, n: number) => `unpack2x16float(${name}_scale_now >> half${n}).x`;
  return [
    '{',
    ...each.map(
      ({ name }) => `let ${name}_now = ${name};${isQuantised(format) ? ` let ${name}_scale_now = ${name}_scale;` : ''}`,
    ),
    ...(more ? [`if (${more}) {`, ...fetch(options, part, p, r, `base + t + ${ahead + r}u`), '}'] : []),
    ...each.flatMap(({ name, factor, n }) => {
      const sums = upTo(count).map((b) => `${factor}${r}_sum${b}`);
      return ['{', ...addLoad(options, n, `${name}_now`, scale(name, n), sums), '}'];
    }),
    '}',
  ];
}

/**
 * Sums of many values over a subgroup: two lanes exchange half of what they have, and add, until each has one value or a part of
 * it. `put` gives the statement of the lane that has the value of an index.
 */
function meet(names: readonly string[], lanes: number, put: (index: string, value: string) => string): string[] {
  const lines: string[] = [];
  for (let at = 0; at < names.length; at += lanes) {
    const own = names.slice(at, at + lanes);
    let bit = 1;
    for (let half = own.length / 2; half >= 1; half /= 2, bit *= 2)
      for (let i = 0; i < half; i++) {
        const [low, high] = [own[i]!, own[i + half]!];
        const odd = `(sub_lane & ${bit}u) != 0u`;
        lines.push(`{ let given = select(${high}, ${low}, ${odd}); let kept = select(${low}, ${high}, ${odd});`);
        lines.push(`  ${low} = kept + subgroupShuffleXor(given, ${bit}u); }`);
      }
    for (; bit < lanes; bit *= 2) lines.push(`${own[0]} += subgroupShuffleXor(${own[0]}, ${bit}u);`);
    const index = own.length === 1 ? `${at}u` : `${at}u + (reverseBits(sub_lane) >> ${32 - Math.log2(own.length)}u)`;
    lines.push(`if (sub_lane < ${own.length}u) { ${put(index, own[0]!)} }`);
  }
  return lines;
}

/** The results that a thread writes: where, and what is added to them, which is loaded early. */
function old(
  { domain, shape: { items: count, rows, size, teams = 1 } }: VectorOptions,
  { y, add }: VectorPart,
  p: number,
): string[] {
  const source = add === 'own' ? `y${p}` : `z${p}`;
  return upTo(Math.ceil((rows * count) / size)).flatMap((e) => {
    const inside = [
      `lane + ${e * size}u < ${rows * count}u`,
      ...(y.width % (rows * teams) === 0 ? [] : [`o${e} < ${y.width}u`]),
      ...(count === 1 ? [] : [`group.y * ${count}u + b${e} <= last`]),
    ];
    const item = count === 1 ? 'group.y' : `min(group.y * ${count}u + b${e}, last)`;
    return [
      `let b${e} = (lane + ${e * size}u) / ${rows}u;`,
      `let o${e} = base + (lane + ${e * size}u) % ${rows}u;`,
      `let mine${e} = ${inside.join(' && ')};`,
      `let at${e} = ${itemAt[domain]}(${item}).x * ${y.width}u + o${e};`,
      ...(add ? [`var old${e} = 0.0;`, `if (mine${e}) { old${e} = f32(${source}[at${e}]); }`] : []),
    ];
  });
}

/** Adds what the subgroups hold, one thread an item and output. */
function finish(options: VectorOptions, part: VectorPart, p: number): string[] {
  const { x, shape, eps } = options;
  const { size, items: count, rows, lanes, teams = 1 } = shape;
  const { y, bias, gate, add } = part;
  const factors = factorsOf(part).length;
  const sum = (name: string, index: string, subgroups = size / lanes) =>
    `var ${name} = 0.0; for (var m = 0u; m < ${subgroups}u; m++) { ${name} += partial[(${index}) * ${subgroups}u + m]; }`;
  return upTo(Math.ceil((rows * count) / size)).flatMap((e) => {
    const index = (f: number) => `((o${e} - base) * ${factors}u + ${f}u) * ${count}u + b${e}`;
    const root = eps === undefined ? '' : ` * inverseSqrt(squares / ${float(x.width)} + ${float(eps)})`;
    const value = gate
      ? `${activationName[gate]}(own${root}) * (other${root})`
      : `own${root}${bias ? ` + bias${p}[o${e}]` : ''}`;
    return [
      `if (mine${e}) {`,
      sum('own', `${teamSums(options)}${index(0)}`),
      ...(gate ? [sum('other', `${teamSums(options)}${index(1)}`)] : []),
      ...(eps === undefined ? [] : [sum('squares', `${rowSums(options)}u + b${e}`, (teams * size) / lanes)]),
      `y${p}[at${e}] = ${y.type}(${add ? `old${e} + ` : ''}${value});`,
      '}',
    ];
  });
}
