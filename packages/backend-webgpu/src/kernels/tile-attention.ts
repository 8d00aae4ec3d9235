import { float, type Kernel, kernel, tileTokens } from './kernel.js';
import { halves, load, matrixTypes, multiply, pitchOf, upTo } from './matrices.js';
import type { AttentionShape } from './softmax-attention.js';

const size = 128;
const keysPerBlock = 64;
// Distances of rows in workgroup memory that spread the lanes of a quarter of a subgroup, or eight rows, over all banks.
const scorePitch = keysPerBlock + 8;
const weightPitch = pitchOf(keysPerBlock);

/** Head widths whose tiles fit the workgroup memory. */
export function tileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim <= 128;
}

/**
 * Attention of long rows in float16 by subgroup matrices: 64 queries of one head a workgroup over blocks of 64 keys. A
 * subgroup of 32 lanes has 32 queries and 32 keys of the scores, and 32 queries and half of the columns of the result (16 and
 * all, where the columns have no halves); for the softmax it has 16 queries, four lanes each. q [tokens, heads*headDim] is turned already; cache [slots, kvHeads, tokens,
 * headDim]. The running maximum moves only when it is passed by more than 2^8, so that the sums seldom leave their registers
 * to be scaled.
 */
export function tileAttention(
  { heads, kvHeads, headDim, scale }: AttentionShape,
  { ahead }: { readonly ahead: boolean } = { ahead: true },
): Kernel {
  const words = headDim / 2;
  const pitch = pitchOf(headDim);
  const [two, four, deep] = [upTo(2), upTo(4), upTo(headDim / 16)];
  const halved = headDim % 32 === 0;
  const [tall, wide] = halved ? [two, upTo(headDim / 32)] : [[0], deep];
  const base = halved ? 'down' : 'subgroup * 16u';
  const columns = halved ? `side * ${headDim / 2}u` : '0u';
  const loads = upTo((keysPerBlock * words) / size);
  const line = (n: number) => `((lane + ${n * size}u) / ${words}u)`;
  const word = (n: number) => `(lane + ${n * size}u) % ${words}u`;
  const fetch = (name: string, read: (row: string, word: string) => string, declare = 'let ') =>
    loads.map((n) => `    ${declare}${name}${n} = ${read(line(n), word(n))};`).join('\n');
  const put = (name: string) =>
    loads.map((n) => `    store_rows(${line(n)} * ${pitch}u + ${word(n)} * 2u, ${name}${n});`).join('\n');
  const cached = (of: string, block: string) => (row: string, at: string) =>
    `${of}[(cache + min(${block} + ${row}, visible - 1u)) * ${words}u + ${at}]`;
  const query = (row: string, at: string) =>
    `q[((first + min(${row}, tile.z - 1u)) * ${heads}u + head) * ${words}u + ${at}]`;
  const out = tall.flatMap((r) => wide.map((c) => ({ r, c, name: `o${r}_${c}` })));
  return kernel({
    name: 'tile-attention',
    buffers: {
      q: ['u32', 'read'],
      keys: ['u32', 'read'],
      values: ['u32', 'read'],
      info: ['u32', 'read'],
      y: ['vec4u', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${halves('rows', keysPerBlock * pitch)} // queries, then keys, then values
var<workgroup> scores: array<f32, ${tileTokens * scorePitch}>; // and tiles of the result
${halves('weights', tileTokens * weightPitch)}
var<workgroup> shrink: array<f32, ${tileTokens}>;
var<workgroup> moved: array<u32, 4>;`,
    size,
    main: `  // The longest first.
  let tile = tile_at(groups.x - 1u - group.x);
  let row = row_at(tile.x);
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let first = row.z + tile.y;
  let position = row.y + tile.y;
  let visible = position + tile.z;
  let cache = (row.x * ${kvHeads}u + kv) * info[0];
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let down = subgroup / 2u * 32u;
  let side = subgroup % 2u;
  {
${fetch('query', query)}
${put('query')}
  }
  workgroupBarrier();
${two.flatMap((r) => deep.map((d) => `  let q${r}_${d} = ${load('Left', 'row', 'rows', `(down + ${16 * r}u) * ${pitch}u + ${16 * d}u`, pitch)};`)).join('\n')}
${out.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
  let mine = subgroup * 256u;
  let member = own % 4u * 2u;
${two
  .map(
    (r) => `  let query${r} = subgroup * 16u + ${8 * r}u + own / 4u;
  var top${r} = -1e30;
  var total${r} = 0.0;`,
  )
  .join('\n')}
${ahead ? fetch('key', cached('keys', '0u'), 'var ') : ''}
  for (var block = 0u; block < visible; block += ${keysPerBlock}u) {
    workgroupBarrier();
${ahead ? '' : fetch('key', cached('keys', 'block'))}
${put('key')}
    if (lane < 4u) { moved[lane] = 0u; }
    workgroupBarrier();
${ahead ? fetch('value', cached('values', 'block')) : ''}
    {
${two.flatMap((r) => two.map((c) => `      var s${r}${c} = Sum();`)).join('\n')}
${deep
  .map(
    (
      d,
    ) => `${two.map((c) => `      let k${d}_${c} = ${load('Right', 'col', 'rows', `(side * 32u + ${16 * c}u) * ${pitch}u + ${16 * d}u`, pitch)};`).join('\n')}
${two.flatMap((r) => two.map((c) => `      ${multiply(`s${r}${c}`, `q${r}_${d}`, `k${d}_${c}`)}`)).join('\n')}`,
  )
  .join('\n')}
${two.flatMap((r) => two.map((c) => `      subgroupMatrixStore<row_major>(&scores, (down + ${16 * r}u) * ${scorePitch}u + side * 32u + ${16 * c}u, s${r}${c}, ${scorePitch}u);`)).join('\n')}
    }
    workgroupBarrier();
    // Values take the place of the keys. Those beyond the last token are the last one's, with a weight of 0.
${ahead ? '' : fetch('value', cached('values', 'block'))}
${put('value')}
${two.map(softmax).join('\n')}
    workgroupBarrier();
    let rescale = workgroupUniformLoad(&moved);
    if (rescale[0] + rescale[1] + rescale[2] + rescale[3] > 0u) {
${out
  .map(({ r, name }) =>
    through(
      name,
      `      for (var e = own; e < 256u; e += 32u) { scores[mine + e] *= shrink[${base} + ${16 * r}u + e / 16u]; }
      workgroupBarrier();
      ${name} = ${load('Sum', 'row', 'scores', 'mine', 16)};`,
    ),
  )
  .join('\n')}
    }
${ahead ? fetch('key', cached('keys', `(block + ${keysPerBlock}u)`), '') : ''}
${four
  .map(
    (k) => `    {
${tall.map((r) => `      let p${r} = ${load('Left', 'row', 'weights', `(${base} + ${16 * r}u) * ${weightPitch}u + ${16 * k}u`, weightPitch)};`).join('\n')}
${wide
  .map(
    (c) => `      let v${c} = ${load('Right', 'row', 'rows', `${16 * k * pitch + 16 * c}u + ${columns}`, pitch)};
${tall.map((r) => `      ${multiply(`o${r}_${c}`, `p${r}`, `v${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`,
  )
  .join('\n')}
  }
  workgroupBarrier();
${two
  .map(
    (r) => `  total${r} += subgroupShuffleXor(total${r}, 1u);
  total${r} += subgroupShuffleXor(total${r}, 2u);
  if (member == 0u) { shrink[query${r}] = 1.0 / total${r}; }`,
  )
  .join('\n')}
${out
  .map(({ r, c, name }) =>
    through(
      name,
      `      {
        let r = ${base} + ${16 * r}u + own / 2u;
        let at = mine + own * 8u;
        if (r < tile.z) {
          let c = ${columns} + ${16 * c}u + own % 2u * 8u;
          y[(((first + r) * ${heads}u + head) * ${headDim}u + c) / 8u] = vec4u(${[0, 2, 4, 6].map((e) => `pack2x16float(vec2f(scores[at + ${e}u], scores[at + ${e + 1}u]) * shrink[r])`).join(', ')});
        }
      }`,
    ),
  )
  .join('\n')}`,
  });

  /** Weights of a query in four lanes, two neighbouring keys of every eight each. */
  function softmax(r: number): string {
    const eight = upTo(8);
    const highest = eight.reduce((a, j) => (a ? `max(${a}, s${j})` : `s${j}`), '');
    return `    {
      let line = query${r} * ${scorePitch}u + member;
      let seen = position + query${r} + 1u;
${eight.map((j) => `      var s${j} = vec2f(scores[line + ${8 * j}u], scores[line + ${8 * j + 1}u]) * ${float(scale * Math.LOG2E)};`).join('\n')}
      if (block + ${keysPerBlock}u > position + 1u) {
        let here = vec2u(0u, 1u) + block + member;
${eight.map((j) => `        s${j} = select(vec2f(-1e30), s${j}, here + ${8 * j}u < vec2u(seen));`).join('\n')}
      }
      let highest = ${highest};
      var block_top = max(highest.x, highest.y);
      block_top = max(block_top, subgroupShuffleXor(block_top, 1u));
      block_top = max(block_top, subgroupShuffleXor(block_top, 2u));
      let moves = block_top > top${r} + 8.0;
      let next = select(top${r}, block_top, moves);
      let factor = exp2(max(top${r} - next, -100.0));
      top${r} = next;
      var sum = vec2f();
      let at = query${r} * ${weightPitch}u + member;
${eight.map((j) => `      s${j} = exp2(s${j} - top${r});\n      sum += s${j};\n      store_weights(at + ${8 * j}u, pack2x16float(s${j}));`).join('\n')}
      total${r} = total${r} * factor + sum.x + sum.y;
      if (moves && block > 0u) { moved[subgroup] = 1u; }
      if (member == 0u) { shrink[query${r}] = factor; }
    }`;
  }
}

function through(name: string, change: string): string {
  return `      subgroupMatrixStore<row_major>(&scores, mine, ${name}, 16u);
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
