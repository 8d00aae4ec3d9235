import { type Activation, activationFunctions, activationName, type Part, type Shape } from './elementwise.js';
import { type Domain, type Grid, itemAt, items, type Kernel, kernel, logFunctions, upTo } from './kernel.js';
import { eightFunctions, halves, load, matrixTypes, multiply, pitchOf, storeSums } from './matrices.js';
import { firstOf, foursOf, loadType, type VectorPart } from './vector-options.js';

/** How a product is cut: tiles of a workgroup, features a round (32 or 64), tiles of a subgroup. */
export interface MatrixShape {
  readonly items: number;
  readonly outputs: number;
  readonly depth: number;
  readonly subgroupItems: number;
  readonly subgroupOutputs: number;
  /** Rounds that are under way from the buffers while one is multiplied. */
  readonly ahead: 1 | 2;
}

const square = {
  items: 128,
  outputs: 128,
  depth: 32,
  subgroupItems: 64,
  subgroupOutputs: 64,
  ahead: 1,
} as const;

/** The cuts among which a device chooses (see tune.ts), all within its 48 KiB of workgroup memory. */
export const matrixShapes: Readonly<Record<string, MatrixShape>> = {
  '256x128, 32 deep, 2 ahead': { ...square, items: 256, ahead: 2 },
  '128x256, 32 deep, 2 ahead': { ...square, outputs: 256, ahead: 2 },
  '256x128, 32 deep': { ...square, items: 256 },
  '128x128, 32 deep': square,
};

/** What a device takes that has not been asked. */
export const matrixShape: MatrixShape = matrixShapes['256x128, 32 deep, 2 ahead']!;

/** What a product takes that has fewer workgroups of the other cut than a large device has multiprocessors. */
export const smallShape: MatrixShape = square;
/** About the multiprocessors of a large device. */
export const enoughGroups = 128;

/** Workgroups of products with so many outputs; of a gated one both factors count. */
export function matrixGroups(items: number, outputs: number, shape: MatrixShape): Grid {
  return [Math.ceil(outputs / shape.outputs), Math.ceil(items / shape.items), 1];
}

/** Rows of tiles whose workgroups follow each other, so that they find their operands in the cache. */
const band = 8;

type Options = Pick<VectorPart, 'bias' | 'add' | 'gate'>;

/**
 * y = x W^T + b, or y = z + x W^T + b, or y = f(x W^T) * (x U^T), in float16 with float32 sums, by subgroup matrices. A round goes
 * from the buffers to registers, to workgroup memory, to matrices; all three are under way while one multiplies. The width of x is
 * a multiple of 8. One workgroup a tile: [outputs / shape.outputs, items / shape.items]; where gated, half of a tile's outputs are
 * sums of W, the others sums of U for the same outputs. Buffers: x, w, (u), (bias), (z), y.
 */
export function linearMatrix(
  domain: Domain,
  y: Shape,
  x: Part,
  { bias, add, gate }: Options,
  shape: MatrixShape = matrixShape,
): Kernel {
  const { items: rows, outputs: columns, subgroupItems, subgroupOutputs, ahead } = shape;
  const { pitch, eights, lines, subgroups, loads, down, sums, factors } = tileOf(shape, gate);
  const side = columns / subgroupOutputs;
  const stage = rows >= columns ? 'xs' : 'ws'; // at last tiles of 16 by 16 of float32 for every subgroup, one of each factor
  const result = { domain, stage, y, bias, add, gate };
  const width = x.width / 8;
  const { first, body } = roundsOf(x, shape, gate);
  return kernel({
    name: gate ? 'linear-matrix-gated' : 'linear-matrix',
    buffers: {
      x: ['vec4u', 'read'],
      w: ['vec4u', 'read'],
      ...(gate ? { u: ['vec4u', 'read'] as const } : {}),
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      ...(add && add !== 'own' ? { z: [typed(y, add), 'read'] as const } : {}),
      y: [typed(y, y), 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${halves('xs', rows * pitch)}
${halves('ws', columns * pitch)}
${eightFunctions}${gate ? gateFunction(gate) : ''}`,
    size: 32 * subgroups,
    main: `  let last = ${items[domain]} - 1u;
  let id = group.y * groups.x + group.x;
  let band_first = id / (${band}u * groups.x) * ${band}u;
  let band_height = min(${band}u, groups.y - band_first);
  let in_band = id % (${band}u * groups.x);
  let item_base = (band_first + in_band % band_height) * ${rows}u;
  let out_base = in_band / band_height * ${columns / factors}u;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let row = subgroup / ${side}u * ${subgroupItems}u;
  let column = subgroup % ${side}u * ${subgroupOutputs / factors}u;
  let line = ${lineOf(eights)};
  let slot = line * ${pitch}u + lane % ${eights}u * 8u;
${loads
  .map(({ of, n, name }) => {
    const at =
      of === 'x'
        ? `${itemAt[domain]}(min(item_base + line + ${n * lines}u, last)).x`
        : `min(out_base + line + ${(n * lines) % (columns / factors)}u, ${y.width - 1}u)`;
    const begin = of === 'x' ? firstOf(x, at, 8) : `${at} * ${width}u`;
    const held = upTo(ahead).map((to) => `  var next${to}_${name} = vec4u();`);
    return `  let row_${name} = ${begin};\n${held.join('\n')}`;
  })
  .join('\n')}
${sums.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
  var at = lane % ${eights}u;
${first}
  for (var k = 0u; k < ${Math.ceil(x.width / shape.depth / ahead)}u; k++) {
${body}
  }
  workgroupBarrier();
  let mine = subgroup * ${256 * factors}u;
${down.map((r) => finishRow(result, shape, r)).join('\n')}`,
  });
}

/**
 * What a cut is made of: loads of a lane in a round, by name, and the tiles of 16 by 16 of a subgroup: those across of all factors,
 * by their columns, of which results are finished.
 */
function tileOf({ items, outputs, depth, subgroupItems, subgroupOutputs }: MatrixShape, gate?: Activation) {
  const subgroups = (items / subgroupItems) * (outputs / subgroupOutputs);
  const eights = depth / 8; // of eight features, in a round
  const lines = (32 * subgroups) / eights; // rows that all lanes load at once
  const factors = gate ? 2 : 1; // matrices, each with as many columns of the tile
  const loads = [
    ...upTo(items / lines).map((n) => ({ of: 'x', to: 'xs', n, name: `x${n}` })),
    ...upTo(outputs / lines).map((n) => {
      const of = factors * n * lines < outputs ? 'w' : 'u';
      return { of, to: 'ws', n, name: `w${n}` };
    }),
  ];
  const [down, finished] = [upTo(subgroupItems / 16), upTo(subgroupOutputs / 16 / factors)];
  const across = upTo(factors).flatMap((f) => finished.map((c) => ({ column: (f * outputs) / factors + 16 * c })));
  const sums = down.flatMap((r) => across.map((_, c) => ({ r, c, name: `sum${r}_${c}` })));
  return { pitch: pitchOf(depth), eights, lines, subgroups, loads, down, across, finished, sums, factors };
}

/** WGSL of the first round's way to the matrices, and of the body that multiplies `ahead` rounds while the next are under way. */
function roundsOf(x: Part, shape: MatrixShape, gate?: Activation): { readonly first: string; readonly body: string } {
  const { depth, ahead } = shape;
  const { pitch, eights, lines, loads, down, across, sums } = tileOf(shape, gate);
  const width = x.width / 8;
  const whole = x.width % (depth * ahead) === 0;
  // Beyond the last round the last one is loaded again, in vain: a branch would make its products wait for the loads.
  const fetch = (to: number) =>
    `${loads
      .map(({ of, name }) => {
        const value = `${of}[row_${name} + min(at, ${width - 1}u)]`;
        return `    next${to}_${name} = ${whole ? value : `select(vec4u(), ${value}, at < ${width}u)`};`;
      })
      .join('\n')}
    at += ${eights}u;`;
  const store = (from: number) =>
    loads.map(({ to, n, name }) => `    store_${to}(slot + ${n * lines * pitch}u, next${from}_${name});`).join('\n');
  const left = (r: number, d: number) =>
    load('Left', 'row', 'xs', `(row + ${16 * r}u) * ${pitch}u + ${16 * d}u`, pitch);
  const right = (c: number, d: number) =>
    load('Right', 'col', 'ws', `(column + ${across[c]!.column}u) * ${pitch}u + ${16 * d}u`, pitch);
  const steps = upTo(depth / 16);
  // Operands of a step, under names of its own; those of a body's first step come from the body before.
  const operands = (declare: string, step: number) => {
    const d = step % steps.length;
    return `${across.map((_, c) => `    ${declare}right${step}_${c} = ${right(c, d)};`).join('\n')}
${down.map((r) => `    ${declare}left${step}_${r} = ${left(r, d)};`).join('\n')}`;
  };
  const body = upTo(ahead).flatMap((round) =>
    steps.map((d) => {
      const step = round * steps.length + d;
      const last = step === ahead * steps.length - 1;
      // Eastwards, then westwards, so that neighbouring products share an operand.
      const products = sums.map(({ r, c }) => {
        const k = r % 2 === 0 ? c : across.length - 1 - c;
        return `    ${multiply(`sum${r}_${k}`, `left${step}_${r}`, `right${step}_${k}`)}`;
      });
      return `${d === 0 ? fetch(round) : ''}
${d === steps.length - 1 ? `    workgroupBarrier();\n${store((round + 1) % ahead)}\n    workgroupBarrier();` : ''}
${last ? operands('', 0) : operands('let ', step + 1)}
${products.join('\n')}`;
    }),
  );
  const first = `${fetch(0)}
${store(0)}
${upTo(ahead - 1)
  .map((n) => fetch(n + 1))
  .join('\n')}
  workgroupBarrier();
${operands('var ', 0)}`;
  return { first, body: body.join('\n') };
}

/** The row that a lane loads; eight lanes write to all banks. */
function lineOf(eights: number): string {
  return eights === 4 ? 'lane / 32u * 8u + lane / 4u % 2u * 4u + lane % 32u / 8u' : `lane / ${eights}u`;
}

function isWide(y: Shape): boolean {
  return y.width % 8 === 0;
}

/** What a value is read and written as. */
function typed(y: Shape, { type }: Shape): string {
  if (!isWide(y)) return type;
  return loadType(type);
}

/** Where a subgroup stages a tile of a factor. */
function placeOf(factor: number): string {
  return factor === 0 ? 'mine' : `(mine + ${256 * factor}u)`;
}

/** WGSL of `gate_four`. */
function gateFunction(gate: Activation): string {
  const each = [...'xyzw'].map((e) => `${activationName[gate]}(v.${e})`);
  return `
${logFunctions}${activationFunctions}
fn gate_four(v: vec4f) -> vec4f { return vec4f(${each.join(', ')}); }`;
}

/** A tile of 16 by 16 of the result: what comes before the tiles of a row are staged, and after this one is. */
interface Finish {
  readonly before: string;
  readonly after: string;
}

interface Finished extends Options {
  readonly y: Shape;
  readonly domain: Domain;
  /** Workgroup memory of the staged tile. */
  readonly stage: string;
}

/** WGSL of four staged sums; gated, of two such. */
function stagedFour({ stage, gate }: Finished, four: string): string {
  const of = (factor: number) => `bitcast<vec4f>(${stage}[${placeOf(factor)} / 4u + ${four}])`;
  return gate ? `(gate_four(${of(0)}) * ${of(1)})` : of(0);
}

/** WGSL that stages the tiles of a row of a subgroup one after the other, and writes them. */
function finishRow(result: Finished, shape: MatrixShape, r: number): string {
  const { y, stage, gate } = result;
  const { finished, factors } = tileOf(shape, gate);
  const finish = isWide(y) ? finishEights : finishOnes;
  const tiles = finished.map((c) =>
    finish(result, `item_base + row + ${16 * r}u`, `out_base + column + ${16 * c}u`, c),
  );
  const staged = (c: number) =>
    upTo(factors).map((f) => storeSums(stage, placeOf(f), `sum${r}_${c + f * finished.length}`, 16));
  return `  {
${tiles.map(({ before }) => before).join('\n')}
${tiles
  .map(
    ({ after }, c) => `    ${staged(c).join('\n    ')}
    workgroupBarrier();
${after}
    workgroupBarrier();`,
  )
  .join('\n')}
  }`;
}

/** Writes a tile number by number. */
function finishOnes(result: Finished, item: string, output: string): Finish {
  const { domain, y, bias, add } = result;
  const at = `${itemAt[domain]}(i).x * ${y.width}u + o`;
  const old = add ? `f32(${add === 'own' ? 'y' : 'z'}[${at}]) + ` : '';
  const sum = stagedFour(result, 'e / 4u');
  const after = `  for (var e = own; e < 256u; e += 32u) {
    let i = ${item} + e / 16u;
    let o = ${output} + e % 16u;
    if (i <= last && o < ${y.width}u) {
      y[${at}] = ${y.type}(${old}${sum}[e % 4u]${bias ? ' + bias[o]' : ''});
    }
  }`;
  return { before: '', after };
}

/** Eight neighbours a lane; what is added to is loaded for all tiles of a row at once. */
function finishEights(result: Finished, item: string, output: string, c: number): Finish {
  const { domain, y, bias, add } = result;
  const [z, type] = add === 'own' ? ['y', y.type] : ['z', add?.type];
  const loads =
    type === undefined ? [] : type === 'f32' ? [`${z}[2u * at${c}]`, `${z}[2u * at${c} + 1u]`] : [`${z}[at${c}]`];
  const old = loads.flatMap((_, n) => foursOf(type!, `old${c}_${n}`));
  const [low, high] = upTo(2).map((n) => {
    const four = upTo(4).map((e) => `bias[o${c} + ${4 * n + e}u]`);
    const sum = stagedFour(result, `own * 2u + ${n}u`);
    return [...old.slice(n, n + 1), sum, ...(bias ? [`vec4f(${four.join(', ')})`] : [])].join(' + ');
  });
  const before = `    let i${c} = ${item} + own / 2u;
    let o${c} = ${output} + own % 2u * 8u;
    let at${c} = (${itemAt[domain]}(min(i${c}, last)).x * ${y.width}u + min(o${c}, ${y.width - 8}u)) / 8u;
${loads.map((load, n) => `    let old${c}_${n} = ${load};`).join('\n')}`;
  const write =
    y.type === 'f32'
      ? `y[2u * at${c}] = ${low}; y[2u * at${c} + 1u] = ${high};`
      : `y[at${c}] = eight_of(${low}, ${high});`;
  return { before, after: `    if (i${c} <= last && o${c} < ${y.width}u) { ${write} }` };
}
