import { upTo } from './kernel.js';
import { isQuantised } from './quantise.js';
import { beginOf, isWhole, loadsOfLane } from './vector-lane.js';
import { firstOf, foursOf, loadWidth, type VectorOptions, type VectorPart } from './vector-options.js';

// How the teams of a workgroup of a matrix-vector kernel (linear-vector.ts) quantise x together, each lane neighbouring numbers:
// its loads of x and of the norm's weights are whole lines, and once a workgroup, where lanes that take their own features read
// 128 bytes apart. What the lanes need of it, they find in the workgroup's memory.

/** Whether x is quantised so. */
export function isStaged({ format, shape: { items, teams } }: VectorOptions): boolean {
  return teams !== undefined && isQuantised(format) && items === 1;
}

/** Of the features that a load of a matrix meets: four a word, and their scale. */
export function stageModule({ x, format }: VectorOptions): string {
  const loads = x.width / loadWidth[format];
  return `var<workgroup> quants: array<vec4u, ${x.width / 16}>;
var<workgroup> scales: array<f32, ${loads}>;`;
}

/** Loads of x that a thread takes, and how many threads there are. */
function sharesOf({ x, shape: { size, teams = 1 } }: VectorOptions): { readonly shares: number[]; threads: number } {
  const threads = size * teams;
  return { shares: upTo(Math.ceil(x.width / loadWidth[x.type] / threads)), threads };
}

/** Whether all threads have a load. */
function isFull(options: VectorOptions, share: number): boolean {
  const { x } = options;
  return (share + 1) * sharesOf(options).threads * loadWidth[x.type] <= x.width;
}

/** Loads of x of item `i` into s{share}: of declared ones again without `declare`. */
export function stageLoads(
  options: VectorOptions,
  { x: own }: VectorPart,
  p: number,
  i: string,
  declare: boolean,
): string[] {
  const { x, eps } = options;
  const width = loadWidth[x.type];
  const { shares, threads } = sharesOf(options);
  const of = `${own ? `x${p}` : 'x'}[${firstOf(own ?? x, i, width)}`;
  if (!declare) return shares.map((k) => `s${k} = ${of} + own${k}];`);
  return shares.flatMap((k) => [
    `let own${k} = ${isFull(options, k) ? `thread + ${k * threads}u` : `min(thread + ${k * threads}u, ${x.width / width - 1}u)`};`,
    `var s${k} = ${of} + own${k}];`,
    ...(eps === undefined
      ? []
      : upTo(width / 4).map((f) => `let norm${k}_${f} = norm[own${k} * ${width / 4}u + ${f}u];`)),
  ]);
}

/** Quantises the shares, then takes what the lane needs: q, scale and begin as vector-lane.ts has them, and the squares. */
export function stageFeatures(options: VectorOptions): string[] {
  const { eps } = options;
  const { shares } = sharesOf(options);
  return [
    ...(eps === undefined ? [] : ['var squares0 = 0.0;']),
    ...shares.flatMap((k) => stageShare(options, k)),
    'workgroupBarrier();',
    ...upTo(loadsOfLane(options)).flatMap((n) => takeLoad(options, n)),
  ];
}

function stageShare(options: VectorOptions, k: number): string[] {
  const { x, eps, format } = options;
  const width = loadWidth[x.type];
  const { threads } = sharesOf(options);
  const together = loadWidth[format] / width; // lanes whose loads share a scale
  const fours = foursOf(x.type, `s${k}`);
  const inside = isFull(options, k) ? undefined : `thread + ${k * threads}u < ${x.width / width}u`;
  const square = (f: number) => `dot(v${k}_${f}, v${k}_${f})`;
  const most = fours.map((_, f) => `abs(v${k}_${f})`).reduce((a, b) => `max(${a}, ${b})`);
  const put = [
    ...fours.map((_, f) => {
      const word = fours.length === 1 ? `own${k}` : `(${fours.length}u * own${k} + ${f}u)`;
      return `quants[${word} / 4u][${word} % 4u] = word(v${k}_${f} * inverse${k});`;
    }),
    `if (own${k} % ${together}u == 0u) { scales[own${k} / ${together}u] = most${k} / 127.0; }`,
  ];
  return [
    ...fours.flatMap((four, f) => [
      `var v${k}_${f} = ${four};`,
      ...(eps === undefined
        ? []
        : [`squares0 += ${inside ? `select(0.0, ${square(f)}, ${inside})` : square(f)}; v${k}_${f} *= norm${k}_${f};`]),
    ]),
    `let high${k} = ${most};`,
    `var most${k} = max(max(high${k}.x, high${k}.y), max(high${k}.z, high${k}.w));`,
    ...upTo(Math.log2(together)).map((n) => `most${k} = max(most${k}, subgroupShuffleXor(most${k}, ${2 ** n}u));`),
    `let inverse${k} = select(0.0, 127.0 / most${k}, most${k} > 0.0);`,
    ...(inside ? [`if (${inside}) {`, ...put, '}'] : put),
  ];
}

function takeLoad(options: VectorOptions, n: number): string[] {
  const words = loadWidth[options.format] / 4;
  return [
    ...upTo(words / 4).map((i) => `let quants${n}_${i} = quants[column${n} * ${words / 4}u + ${i}u];`),
    ...upTo(words).map((f) => {
      const word = `quants${n}_${Math.floor(f / 4)}.${'xyzw'[f % 4]}`;
      return `let q0_${n}_${f} = ${isWhole(options, n) ? word : `select(0u, ${word}, inside${n})`};`;
    }),
    `let scale0_${n} = scales[column${n}];`,
    beginOf(options.format, `0_${n}`),
  ];
}
