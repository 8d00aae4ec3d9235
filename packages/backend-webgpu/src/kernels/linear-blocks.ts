import { blockSize, type Quantised, scaleWord } from './quantise.js';
import { firstOf, itemOf, type VectorOptions, type VectorPart } from './vector-options.js';

// The inside of a matrix-vector kernel (linear-vector.ts) whose matrices are quantised. Each workgroup first makes blocks of 8 bits
// of x, with a float32 scale each; then a load of a matrix takes products of four integers at a time (the way of llama.cpp's
// mmvq). The norm's weights are applied before x is quantised, the reciprocal root at the end.

/** Features that a load of 16 bytes takes. */
const loadWidth: Readonly<Record<Quantised, number>> = { q8: 16, q4: 32 };

/** Features of x that a load of 16 bytes takes. */
const loadWidthOfX = { f32: 4, f16: 8 } as const;

/** Bytes of workgroup memory for x. */
export function blocksBytes(width: number, items: number): number {
  return items * (width + (width / blockSize) * 8);
}

export function blocksModule(width: number, items: number): string {
  return `var<workgroup> xs: array<vec4u, ${(items * width) / 16}>;
var<workgroup> x_scales: array<vec2f, ${(items * width) / blockSize}>; // scale, scale * sum`;
}

/** Statements that fill `xs` from x and leave the squares of this thread in `squares` of every item. Four lanes share a block. */
export function blocksOfX(options: VectorOptions): string {
  const { x, eps, shape } = options;
  const { items, size } = shape;
  const loads = x.width / 8;
  const rounds = [...Array(Math.ceil(loads / size)).keys()];
  const names = x.type === 'f32' ? ['low', 'high'] : ['eight'];
  // Before any use, so that all are on their way; of lanes beyond the end the last load comes again.
  const fetch = (b: number, r: number) =>
    [
      `let j${r} = min(lane + ${r * size}u, ${loads - 1}u);`,
      ...names.map((name, n) => {
        const at = `${firstOf(x, `i${b}`, loadWidthOfX[x.type])} + ${names.length}u * j${r} + ${n}u`;
        return `let ${name}${r} = x[${at}];`;
      }),
      ...(eps === undefined ? [] : [0, 1].map((n) => `let norm${r}_${n} = norm[2u * j${r} + ${n}u];`)),
    ]
      .map((line) => `    ${line}`)
      .join('\n');
  const values = (r: number) =>
    x.type === 'f32'
      ? `var v0 = low${r};
      var v1 = high${r};`
      : `var v0 = vec4f(unpack2x16float(eight${r}.x), unpack2x16float(eight${r}.y));
      var v1 = vec4f(unpack2x16float(eight${r}.z), unpack2x16float(eight${r}.w));`;
  const guarded = (r: number, body: string) =>
    (r + 1) * size <= loads ? body : `if (lane + ${r * size}u < ${loads}u) { ${body} }`;
  const normed = (b: number, r: number) => `      ${guarded(r, `squares${b} += dot(v0, v0) + dot(v1, v1);`)}
      v0 *= norm${r}_0;
      v1 *= norm${r}_1;
`;
  const turn = (b: number, r: number) => `    {
      ${values(r)}
${eps === undefined ? '' : normed(b, r)}      let most4 = max(abs(v0), abs(v1));
      var most = max(max(most4.x, most4.y), max(most4.z, most4.w));
      most = max(most, subgroupShuffleXor(most, 1u));
      most = max(most, subgroupShuffleXor(most, 2u));
      let scale = most / 127.0;
      let inverse = select(0.0, 1.0 / scale, scale > 0.0);
      let q0 = vec4i(round(v0 * inverse));
      let q1 = vec4i(round(v1 * inverse));
      let both = q0 + q1;
      var sum = both.x + both.y + both.z + both.w;
      sum += subgroupShuffleXor(sum, 1u);
      sum += subgroupShuffleXor(sum, 2u);
      let words = vec2u(pack4xI8(q0), pack4xI8(q1));
      let others = subgroupShuffleXor(words, 1u);
      ${guarded(
        r,
        `if (lane % 2u == 0u) { xs[${(b * x.width) / 16}u + j${r} / 2u] = vec4u(words, others); }
      if (lane % 4u == 0u) { x_scales[${(b * x.width) / blockSize}u + j${r} / 4u] = vec2f(scale, scale * f32(sum)); }`,
      )}
    }`;
  const item = (b: number) => `  {
    let i${b} = ${itemOf(options, b)};
${rounds.map((r) => fetch(b, r)).join('\n')}
${rounds.map((r) => turn(b, r)).join('\n')}
  }`;
  const squares = [...Array(items).keys()].map((b) => `  var squares${b} = 0.0;`);
  return [...(eps === undefined ? [] : squares), ...[...Array(items).keys()].map(item), '  workgroupBarrier();'].join(
    '\n',
  );
}

/** Loads of a row that a lane has on its way. */
const aheadOf = ({ shape: { items } }: VectorOptions): number => (items === 1 ? 4 : 2);

/** The streams of matrix loads of a lane: rows of the factors. */
function streamsOf({ shape: { rows }, parts }: VectorOptions): { readonly f: 'w' | 'u'; readonly r: number }[] {
  const factors = parts[0]!.gate ? (['w', 'u'] as const) : (['w'] as const);
  return [...Array(rows).keys()].flatMap((r) => factors.map((f) => ({ f, r })));
}

const turnsOf = (options: VectorOptions): number[] => [...Array(aheadOf(options)).keys()];

/** Loads of the matrix, and of its scales, from load `from` of the rows on: into p{turn}_{factor}{row} and c{turn}_{factor}{row}. */
function fetch(options: VectorOptions, { y }: VectorPart, p: number, format: Quantised, from: string): string[] {
  const { x, shape } = options;
  const loads = blocksLoads(x.width, format);
  const per = blockSize / loadWidth[format];
  return turnsOf(options).flatMap((t) => [
    `{ let at = min(${from} + ${t * shape.lanes * shape.team}u, ${loads - 1}u);`,
    ...streamsOf(options).flatMap(({ f, r }) => [
      `  p${t}_${f}${r} = ${f}${p}[row${r} + at];`,
      `  c${t}_${f}${r} = ${scaleWord(format, `${f}${p}`, `(row${r} + at) / ${per}u`, x.width * y.width)};`,
    ]),
    '}',
  ]);
}

/** What is on its way before x is quantised. */
export function blocksAhead(
  options: VectorOptions,
  format: Quantised,
): { readonly declarations: string; loads(part: VectorPart, p: number): string } {
  const names = turnsOf(options).flatMap((t) => streamsOf(options).map(({ f, r }) => `${t}_${f}${r}`));
  return {
    declarations: names.map((name) => `  var p${name} = vec4u();\n  var c${name} = 0u;`).join('\n'),
    loads: (part, p) =>
      fetch(options, part, p, format, 'step')
        .map((line) => `    ${line}`)
        .join('\n'),
  };
}

/** The loop over the loads of the rows; adds to the sums s{factor}{item}_{row}. */
export function blocksLoop(options: VectorOptions, part: VectorPart, p: number, format: Quantised): string {
  const { x, shape } = options;
  const { items, team, lanes } = shape;
  const per = blockSize / loadWidth[format];
  const loads = blocksLoads(x.width, format);
  const stride = lanes * team;
  const [ahead, turns] = [aheadOf(options), turnsOf(options)];
  const streams = streamsOf(options);
  const batch = [...Array(items).keys()];
  const fields = ['x', 'y', 'z', 'w'];
  const use = (t: number): string[] => {
    const lines = [`let at = k + ${t * stride}u;`];
    for (const b of batch) {
      const [from, blocks] = [(b * x.width) / 16, (b * x.width) / blockSize];
      lines.push(`let scale${b} = x_scales[${blocks}u + at / ${per}u];`);
      if (format === 'q8') lines.push(`let x${b} = xs[${from}u + at];`);
      else lines.push(`let x${b} = xs[${from}u + 2u * at];`, `let h${b} = xs[${from}u + 2u * at + 1u];`);
    }
    for (const { f, r } of streams) {
      const name = `now${t}_${f}${r}`;
      const scale = `unpack2x16float(scale${t}_${f}${r})[(row${r} + at) / ${per}u % 2u]`;
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
        lines.push(`s${f}${b}_${r} += ${scale} * (${sum});`);
      }
    }
    return [`if (k + ${t * stride}u < ${loads}u) {`, ...lines.map((line) => `  ${line}`), '}'];
  };
  const now = turns.flatMap((t) =>
    streams.flatMap(({ f, r }) => [
      `let now${t}_${f}${r} = p${t}_${f}${r};`,
      `let scale${t}_${f}${r} = c${t}_${f}${r};`,
    ]),
  );
  const next = fetch(options, part, p, format, `k + ${ahead * stride}u`);
  const more = loads > ahead * stride;
  const lines = [
    ...now,
    ...(more ? [`if (k + ${ahead * stride}u < ${loads}u) {`, ...next, '}'] : []),
    ...turns.flatMap(use),
  ];
  return `  for (var k = step; k < ${loads}u; k += ${ahead * stride}u) {
${lines.map((line) => `    ${line}`).join('\n')}
  }`;
}

export function blocksLoads(width: number, format: Quantised): number {
  return width / loadWidth[format];
}
