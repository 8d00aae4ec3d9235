import { upTo } from './kernel.js';
import { type Format, isQuantised, type Quantised } from './quantise.js';
import { firstOf, foursOf, loadWidth, type VectorOptions, type VectorPart } from './vector-options.js';

// What a lane of a matrix-vector kernel (linear-vector.ts) keeps of x, and what it makes of a load of a matrix. Of quantised
// matrices, the lane quantises its own features, with a float32 scale for every load: then a load takes products of four
// integers at a time (the way of llama.cpp's mmvq). The norm's weights are applied before, the reciprocal root at the end.

/** Loads of a row that a lane takes. */
export function loadsOfLane({ x, format, shape: { size } }: VectorOptions): number {
  return Math.ceil(x.width / loadWidth[format] / size);
}

/** Bits of 1.5 * 2^23 as a float32, which is 12582912. */
const oneAndHalf = '0x4b400000';

export const laneModule = `fn word(v: vec4f) -> u32 {
  // The last bits are the nearest integer.
  let bytes = bitcast<vec4u>(v + 12582912.0) & vec4u(255u);
  return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}`;

/** Loads of x and of the norm's weights, then v{item}_{load}_{four} of them; quantised: q, scale and offset. */
export function featuresOfLane(options: VectorOptions, { x: own }: VectorPart, p: number): string[] {
  const { x, format, eps, shape } = options;
  const wide = loadWidth[format];
  const width = loadWidth[x.type];
  const [loads, fours] = [upTo(wide / width), upTo(wide / 4)];
  const lane = upTo(loadsOfLane(options));
  const each = upTo(shape.items).flatMap((b) => lane.map((n) => ({ b, n, t: `${b}_${n}` })));
  const from = (b: number) => firstOf(own ?? x, `i${b}`, width);
  const fetch = [
    ...each.flatMap(({ b, n, t }) =>
      loads.map((l) => `let x${t}_${l} = ${own ? `x${p}` : 'x'}[${from(b)} + column${n} * ${loads.length}u + ${l}u];`),
    ),
    ...(eps === undefined
      ? []
      : lane.flatMap((n) => fours.map((f) => `let norm${n}_${f} = norm[column${n} * ${fours.length}u + ${f}u];`))),
  ];
  const value = (n: number, four: string) => (isWhole(options, n) ? four : `select(vec4f(), ${four}, inside${n})`);
  const use = each.flatMap(({ b, n, t }) => [
    ...loads.flatMap((l) => foursOf(x.type, `x${t}_${l}`)).map((four, f) => `var v${t}_${f} = ${value(n, four)};`),
    ...(eps === undefined
      ? []
      : fours.map((f) => `squares${b} += dot(v${t}_${f}, v${t}_${f}); v${t}_${f} *= norm${n}_${f};`)),
    ...(isQuantised(format) ? quantised(format, t, fours) : []),
  ]);
  return [...fetch, ...upTo(eps === undefined ? 0 : shape.items).map((b) => `var squares${b} = 0.0;`), ...use];
}

/** Whether all lanes have load `n` of a row. */
export function isWhole({ x, format, shape: { size } }: VectorOptions, n: number): boolean {
  return (n + 1) * size <= x.width / loadWidth[format];
}

function quantised(format: Quantised, t: string, fours: readonly number[]): string[] {
  const most = fours.map((f) => `abs(v${t}_${f})`).reduce((a, b) => `max(${a}, ${b})`);
  return [
    `let most${t} = ${most};`,
    `let scale${t} = max(max(most${t}.x, most${t}.y), max(most${t}.z, most${t}.w)) / 127.0;`,
    `let inverse${t} = select(0.0, 1.0 / scale${t}, scale${t} > 0.0);`,
    ...fours.map((f) => `let q${t}_${f} = word(v${t}_${f} * inverse${t});`),
    beginOf(format, t),
  ];
}

/** Where sums of integers begin: with these bits a float32 counts in ones. The integers of 4 bits have 8 added. */
export function beginOf(format: Format, t: string): string {
  const ones = upTo(loadWidth[format] / 4).map((f) => `dot4I8Packed(q${t}_${f}, 0x01010101u)`);
  return `let begin${t} = ${oneAndHalf}${format === 'q4' ? ` - 8 * (${ones.join(' + ')})` : ''};`;
}

/** Adds the products of x with load `n` of a row, in `load`, to the sums of the items; `scale`: of its block. */
export function addLoad(
  { format }: VectorOptions,
  n: number,
  load: string,
  scale: string,
  sums: readonly string[],
): string[] {
  if (!isQuantised(format)) {
    const fours = foursOf(format, load);
    const dots = (b: number) => fours.map((_, f) => `dot(w${f}, v${b}_${n}_${f})`);
    return [
      ...fours.map((four, f) => `let w${f} = ${four};`),
      ...sums.map((sum, b) => `${sum} += ${dots(b).join(' + ')};`),
    ];
  }
  const fields = ['x', 'y', 'z', 'w'].map((field) => `${load}.${field}`);
  // Of 4 bits, the low halves of a word meet its first four features and the high halves the next.
  const words =
    format === 'q8' ? fields : fields.flatMap((word) => [`${word} & 0x0f0f0f0fu`, `(${word} >> 4u) & 0x0f0f0f0fu`]);
  const dots = (b: number) => words.map((_, f) => `dot4I8Packed(w${f}, q${b}_${n}_${f})`);
  const total = (b: number) => `bitcast<f32>(begin${b}_${n} + ${dots(b).join(' + ')}) - 12582912.0`;
  return [
    ...words.map((word, f) => `let w${f} = ${word};`),
    `let scale = ${scale};`,
    ...sums.map((sum, b) => `${sum} += scale${b}_${n} * scale * (${total(b)});`),
  ];
}
