import { itemAt } from './kernel.js';
import { blockSize, type Quantised, scaleOf } from './quantise.js';
import type { VectorOptions, VectorPart } from './vector-options.js';

// The inside of a matrix-vector kernel (linear-vector.ts) whose matrices are quantised. Each workgroup first makes blocks of 8 bits
// of x, with a float32 scale each; then a load of a matrix takes products of four integers at a time (the way of llama.cpp's
// mmvq). The norm's weights are applied before x is quantised, the reciprocal root at the end.

/** Features that a load of 16 bytes takes. */
const loadWidth: Readonly<Record<Quantised, number>> = { q8: 16, q4: 32 };

/** Bytes of workgroup memory for x. */
export function blocksBytes(width: number, items: number): number {
  return items * (width + (width / blockSize) * 8);
}

export function blocksModule(width: number, items: number): string {
  return `var<workgroup> xs: array<vec4u, ${(items * width) / 16}>;
var<workgroup> x_scales: array<vec2f, ${(items * width) / blockSize}>; // scale, scale * sum`;
}

/** Statements that fill `xs` from x and leave the squares of this thread in `squares` of every item. */
export function blocksOfX({ domain, x, shape: { items }, eps }: VectorOptions, size: number): string {
  const blocks = x.width / blockSize;
  const half = (n: number) =>
    `vec4f(unpack2x16float(a${n}.x), unpack2x16float(a${n}.y)), vec4f(unpack2x16float(a${n}.z), unpack2x16float(a${n}.w))`;
  const read =
    x.type === 'f32'
      ? `let at = i * ${x.width / 4}u + j * 8u;
      var v = array<vec4f, 8>(${[...Array(8).keys()].map((n) => `x[at + ${n}u]`).join(', ')});`
      : `let at = i * ${x.width / 8}u + j * 4u;
${[0, 1, 2, 3].map((n) => `      let a${n} = x[at + ${n}u];`).join('\n')}
      var v = array<vec4f, 8>(${[0, 1, 2, 3].map(half).join(', ')});`;
  const each = (body: (n: number) => string) => [...Array(8).keys()].map((n) => `      ${body(n)}`).join('\n');
  const item = (b: number) => `  {
    let i = ${itemAt[domain]}(min(group.y * ${items}u + ${b}u, last)).x;
    for (var j = lane; j < ${blocks}u; j += ${size}u) {
      ${read}
${eps === undefined ? '' : `${each((n) => `squares${b} += dot(v[${n}], v[${n}]); v[${n}] *= norm[j * 8u + ${n}u];`)}\n`}      var most = vec4f();
${each((n) => `most = max(most, abs(v[${n}]));`)}
      let scale = max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
      let inverse = select(0.0, 1.0 / scale, scale > 0.0);
      var sum = 0i;
      var words = array<u32, 8>();
${each((n) => `{ let q = vec4i(round(v[${n}] * inverse)); sum += q.x + q.y + q.z + q.w; words[${n}] = pack4xI8(q); }`)}
      xs[${(b * x.width) / 16}u + j * 2u] = vec4u(words[0], words[1], words[2], words[3]);
      xs[${(b * x.width) / 16}u + j * 2u + 1u] = vec4u(words[4], words[5], words[6], words[7]);
      x_scales[${b * blocks}u + j] = vec2f(scale, scale * f32(sum));
    }
  }`;
  const squares = [...Array(items).keys()].map((b) => `  var squares${b} = 0.0;`);
  return [...(eps === undefined ? [] : squares), ...[...Array(items).keys()].map(item), '  workgroupBarrier();'].join(
    '\n',
  );
}

/** The loop over the loads of the rows; adds to the sums s{factor}{item}_{row}. */
export function blocksLoop({ x, shape }: VectorOptions, { gate, y }: VectorPart, p: number, format: Quantised): string {
  const { items, rows, team, lanes } = shape;
  const per = blockSize / loadWidth[format];
  const count = x.width * y.width;
  const batch = [...Array(items).keys()];
  const names = [...Array(rows).keys()].flatMap((r) =>
    (gate ? ['w', 'u'] : ['w']).map((f) => ({ f, r, name: `${f}_${r}` })),
  );
  const fields = ['x', 'y', 'z', 'w'];
  const lines = names.flatMap(({ f, r, name }) => [
    `let ${name} = ${f}${p}[row${r} + k];`,
    `let block_${name} = (row${r} + k) / ${per}u;`,
    `let scale_${name} = ${scaleOf(format, `${f}${p}`, `block_${name}`, count)};`,
  ]);
  for (const b of batch) {
    const [at, blocks] = [(b * x.width) / 16, (b * x.width) / blockSize];
    lines.push(`let scale${b} = x_scales[${blocks}u + k / ${per}u];`);
    if (format === 'q8') lines.push(`let x${b} = xs[${at}u + k];`);
    else lines.push(`let x${b} = xs[${at}u + 2u * k];`, `let h${b} = xs[${at}u + 2u * k + 1u];`);
  }
  for (const { f, r, name } of names) {
    // Of 4 bits, the low halves of a word meet its first four features and the high halves the next: words 0 to 3 are 8 words of x.
    if (format === 'q4')
      for (const [c, field] of fields.entries()) {
        lines.push(`let ${name}l${c} = ${name}.${field} & 0x0f0f0f0fu;`);
        lines.push(`let ${name}h${c} = (${name}.${field} >> 4u) & 0x0f0f0f0fu;`);
      }
    for (const b of batch) {
      const dots =
        format === 'q8'
          ? fields.map((field) => `dot4I8Packed(${name}.${field}, x${b}.${field})`)
          : fields.flatMap((_, c) => {
              const words = c < 2 ? `x${b}` : `h${b}`;
              const [low, high] = c % 2 === 0 ? ['x', 'y'] : ['z', 'w'];
              return [`dot4I8Packed(${name}l${c}, ${words}.${low})`, `dot4I8Packed(${name}h${c}, ${words}.${high})`];
            });
      const sum = `scale${b}.x * f32(${dots.join(' + ')})${format === 'q4' ? ` - 8.0 * scale${b}.y` : ''}`;
      lines.push(`s${f}${b}_${r} += scale_${name} * (${sum});`);
    }
  }
  return `  for (var k = step; k < ${x.width / loadWidth[format]}u; k += ${lanes * team}u) {
${lines.map((line) => `    ${line}`).join('\n')}
  }`;
}

export function blocksLoads(width: number, format: Quantised): number {
  return width / loadWidth[format];
}
