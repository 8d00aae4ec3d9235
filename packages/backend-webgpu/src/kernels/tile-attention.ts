import { float, type Kernel, kernel, tileTokens } from './kernel.js';
import { matrixTypes, unpackInto } from './linear-matrix.js';
import type { AttentionShape } from './softmax-attention.js';

const size = 128;
const keysPerBlock = 64;
// Distances of rows in workgroup memory: multiples of 16 bytes that spread rows over the banks.
const scorePitch = keysPerBlock + 4;
const weightPitch = keysPerBlock + 8;

/** Head widths whose tiles fit the workgroup memory. */
export function tileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim <= 128;
}

/**
 * Attention of long rows in float16 by subgroup matrices: 64 queries of one head a workgroup, 16 a subgroup of 32 lanes, over
 * blocks of 64 keys. q [tokens, heads*headDim] is turned already; cache [slots, kvHeads, tokens, headDim]. The running
 * maximum moves only when it is passed by more than e^8, so that the sums seldom leave their registers to be scaled.
 */
export function tileAttention({ heads, kvHeads, headDim, scale }: AttentionShape): Kernel {
  const vectors = headDim / 8;
  const pitch = headDim + 8;
  const tiles = [...Array(headDim / 16).keys()];
  const blocks = [0, 1, 2, 3];
  const stageRows = (source: string) => `    for (var e = lane; e < ${keysPerBlock * vectors}u; e += ${size}u) {
      let r = e / ${vectors}u;
      let v = e % ${vectors}u;
${source}
    }`;
  const through = (t: number, change: string) => `      subgroupMatrixStore<row_major>(&scores, mine, o${t}, 16u);
      workgroupBarrier();
${change}
      workgroupBarrier();`;
  return kernel({
    name: 'tile-attention',
    buffers: {
      q: ['vec4u', 'read'],
      keys: ['vec4u', 'read'],
      values: ['vec4u', 'read'],
      info: ['u32', 'read'],
      y: ['f16', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
var<workgroup> rows: array<f16, ${keysPerBlock * pitch}>; // queries, then keys, then values
var<workgroup> scores: array<f32, ${tileTokens * scorePitch}>;
var<workgroup> weights: array<f16, ${tileTokens * weightPitch}>;
var<workgroup> shrink: array<f32, ${tileTokens}>;
var<workgroup> moved: array<u32, 4>;
${unpackInto('rows')}`,
    size,
    main: `  let tile = tile_at(group.x);
  let row = row_at(tile.x);
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let first = row.z + tile.y;
  let position = row.y + tile.y;
  let visible = position + tile.z;
  let cache = (row.x * ${kvHeads}u + kv) * info[0];
  let subgroup = lane / 32u;
  let own = lane % 32u;
${stageRows(`      store_rows(r * ${pitch}u + v * 8u, q[((first + min(r, tile.z - 1u)) * ${heads}u + head) * ${vectors}u + v]);`)}
  workgroupBarrier();
${tiles.map((t) => `  let q${t} = subgroupMatrixLoad<Left, row_major>(&rows, subgroup * ${16 * pitch}u + ${16 * t}u, ${pitch}u);`).join('\n')}
${tiles.map((t) => `  var o${t} = Sum();`).join('\n')}
  // Two lanes a query, 32 keys each, every lane of a subgroup in another bank.
  let query = lane / 2u;
  let part = (lane % 2u) * 32u;
  let turn = query % 16u / 8u + 2u * (lane % 2u);
  let mine = subgroup * 256u;
  var top = -1e30;
  var total = 0.0;
  for (var block = 0u; block < visible; block += ${keysPerBlock}u) {
    workgroupBarrier();
${stageRows(`      store_rows(r * ${pitch}u + v * 8u, keys[(cache + min(block + r, visible - 1u)) * ${vectors}u + v]);`)}
    workgroupBarrier();
${blocks
  .map(
    (c) => `    var s${c} = Sum();
${tiles.map((t) => `    s${c} = subgroupMatrixMultiplyAccumulate(q${t}, subgroupMatrixLoad<Right, col_major>(&rows, ${16 * c * pitch + 16 * t}u, ${pitch}u), s${c});`).join('\n')}
    subgroupMatrixStore<row_major>(&scores, subgroup * ${16 * scorePitch}u + ${16 * c}u, s${c}, ${scorePitch}u);`,
  )
  .join('\n')}
    workgroupBarrier();
    // Values take the place of the keys; zeros where there is no token, since 0 times NaN is NaN.
${stageRows(`      let there = block + r < visible;
      store_rows(r * ${pitch}u + v * 8u, select(vec4u(), values[(cache + min(block + r, visible - 1u)) * ${vectors}u + v], there));`)}
    let seen = position + query + 1u;
    var block_top = -1e30;
    for (var step = 0u; step < 32u; step++) {
      let n = (step + turn) % 32u;
      let score = scores[query * ${scorePitch}u + part + n] * ${float(scale)};
      block_top = max(block_top, select(-1e30, score, block + part + n < seen));
    }
    block_top = max(block_top, subgroupShuffleXor(block_top, 1u));
    let moves = block_top > top + 8.0;
    let next = select(top, block_top, moves);
    let factor = exp(max(top - next, -100.0));
    top = next;
    total *= factor;
    for (var step = 0u; step < 32u; step++) {
      let n = (step + turn) % 32u;
      let score = scores[query * ${scorePitch}u + part + n] * ${float(scale)};
      let weight = select(0.0, exp(score - top), block + part + n < seen);
      weights[query * ${weightPitch}u + part + n] = f16(weight);
      total += weight;
    }
    if (part == 0u) { shrink[query] = factor; }
    let any = subgroupAny(moves);
    if (own == 0u) { moved[subgroup] = u32(any); }
    workgroupBarrier();
    let rescale = workgroupUniformLoad(&moved);
    if (rescale[0] + rescale[1] + rescale[2] + rescale[3] > 0u) {
${tiles
  .map((t) =>
    through(
      t,
      `      for (var e = own; e < 256u; e += 32u) { scores[mine + e] *= shrink[subgroup * 16u + e / 16u]; }
      workgroupBarrier();
      o${t} = subgroupMatrixLoad<Sum, row_major>(&scores, mine, 16u);`,
    ),
  )
  .join('\n')}
    }
${blocks
  .map(
    (
      k,
    ) => `    let p${k} = subgroupMatrixLoad<Left, row_major>(&weights, subgroup * ${16 * weightPitch}u + ${16 * k}u, ${weightPitch}u);
${tiles.map((t) => `    o${t} = subgroupMatrixMultiplyAccumulate(p${k}, subgroupMatrixLoad<Right, row_major>(&rows, ${16 * k * pitch + 16 * t}u, ${pitch}u), o${t});`).join('\n')}`,
  )
  .join('\n')}
  }
  total += subgroupShuffleXor(total, 1u);
  workgroupBarrier();
  if (part == 0u) { shrink[query] = 1.0 / total; }
${tiles
  .map((t) =>
    through(
      t,
      `      for (var e = own; e < 256u; e += 32u) {
        let r = subgroup * 16u + e / 16u;
        if (r < tile.z) {
          y[((first + r) * ${heads}u + head) * ${headDim}u + ${16 * t}u + e % 16u] = f16(scores[mine + e] * shrink[r]);
        }
      }`,
    ),
  )
  .join('\n')}`,
  });
}
