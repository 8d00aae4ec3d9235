import { float, type Kernel, kernel, tileTokens } from './kernel.js';
import {
  eightFunctions,
  fours,
  halves,
  load,
  loadSums,
  matrixTypes,
  multiply,
  pitchOf,
  scorePitchOf,
  storeSums,
  upTo,
} from './matrices.js';
import type { AttentionShape } from './softmax-attention.js';

const size = 256;
const keys = 32; // of a block
const slice = 64; // columns of queries and keys that are staged at once
const slicePitch = pitchOf(slice);
const scorePitch = scorePitchOf(keys);
const weightPitch = pitchOf(keys);

/** Head widths of this kernel; narrower ones fit tile-attention.ts. */
export function wideTileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim > 128 && headDim <= 512;
}

/**
 * As tileAttention, for heads whose queries fit neither registers nor workgroup memory: for every block of 32 keys queries and
 * keys are staged some columns at a time, the next while these are multiplied. 64 queries of one head a workgroup; a subgroup of
 * 32 lanes has 16 queries, with 16 keys of the scores and half of the columns of the result; for the softmax every query has
 * four lanes. q [tokens, heads*headDim], turned already; cache [slots, kvHeads, tokens, headDim].
 */
export function wideAttention({ heads, kvHeads, headDim, scale }: AttentionShape): Kernel {
  const eights = headDim / 8;
  const pitch = pitchOf(headDim);
  const slices = Math.ceil(headDim / slice);
  const across = Math.ceil(headDim / 32); // tiles of the result of a subgroup; of an odd number the last has two owners
  const last = headDim / 16 - 1;
  const tiles = upTo(across);
  const valueLoads = upTo(Math.ceil((keys * eights) / size));
  const place = (n: number) => `min(lane + ${n * size}u, ${keys * eights - 1}u)`;
  // Columns beyond the head's are zeros.
  const fetch = (at: string) => `    {
      let c = (${at}) * ${slice / 8}u + lane % ${slice / 8}u;
      let eight = min(c, ${eights - 1}u);
      let line = lane / ${slice / 8}u;
      let inside = c < ${eights}u;
${[0, 1].map((n) => `      next_q${n} = select(vec4u(), q[((first + min(line + ${32 * n}u, tile.z - 1u)) * ${heads}u + head) * ${eights}u + eight], inside);`).join('\n')}
      next_k = select(vec4u(), keys[(cache + min(b * ${keys}u + line, visible - 1u)) * ${eights}u + eight], inside);
    }`;
  const step = (d: number) => {
    const query = load('Left', 'row', 'rows', `down * ${slicePitch}u + ${16 * d}u`, slicePitch);
    const key = `(${tileTokens}u + side * 16u) * ${slicePitch}u + ${16 * d}u`;
    return `      ${multiply('s', query, load('Right', 'col', 'rows', key, slicePitch))}`;
  };
  return kernel({
    name: 'wide-attention',
    buffers: {
      q: ['vec4u', 'read'],
      keys: ['vec4u', 'read'],
      values: ['vec4u', 'read'],
      info: ['u32', 'read'],
      y: ['vec4u', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${halves('rows', Math.max(keys * pitch, (tileTokens + keys) * slicePitch))} // columns of queries and keys, then values
${fours('scores', tileTokens * scorePitch)} // and tiles of the result
${halves('weights', tileTokens * weightPitch)}
${eightFunctions}
var<workgroup> shrink: array<f32, ${tileTokens}>;
var<workgroup> moved: array<u32, 8>;`,
    size,
    main: `  // The longest first.
  let tile = tile_at(groups.x - 1u - group.x);
  let row = row_at(tile.x);
  let head = group.y;
  let first = row.z + tile.y;
  let position = row.y + tile.y;
  let visible = position + tile.z;
  let cache = (row.x * ${kvHeads}u + head / ${heads / kvHeads}u) * info[0];
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let down = subgroup / 2u * 16u;
  let side = subgroup % 2u;
  let mine = subgroup * 256u;
  let query = lane / 4u;
  let member = own % 4u * 8u;
  var top = -1e30;
  var total = 0.0;
  var next_q0 = vec4u();
  var next_q1 = vec4u();
  var next_k = vec4u();
${tiles.map((c) => `  var o${c} = Sum();`).join('\n')}
  for (var b = 0u; b * ${keys}u < visible; b++) {
${fetch('0u')}
    var s = Sum();
    for (var part = 0u; part < ${slices}u; part++) {
      workgroupBarrier();
      let to = lane / ${slice / 8}u * ${slicePitch}u + lane % ${slice / 8}u * 8u;
      store_rows(to, next_q0);
      store_rows(to + ${32 * slicePitch}u, next_q1);
      store_rows(to + ${tileTokens * slicePitch}u, next_k);
      if (lane < 8u) { moved[lane] = 0u; }
      // Before a barrier, behind which the compiler cannot put the loads off.
${fetch(`min(part + 1u, ${slices - 1}u)`)}
      workgroupBarrier();
${upTo(slice / 16)
  .map(step)
  .join('\n')}
    }
    ${storeSums('scores', `down * ${scorePitch}u + side * 16u`, 's', scorePitch)}
${valueLoads.map((n) => `    let value${n} = values[(cache + min(b * ${keys}u + ${place(n)} / ${eights}u, visible - 1u)) * ${eights}u + ${place(n)} % ${eights}u];`).join('\n')}
    workgroupBarrier();
    // Values beyond the last token are the last one's, with a weight of 0.
${valueLoads.map((n) => `    store_rows(${place(n)} / ${eights}u * ${pitch}u + ${place(n)} % ${eights}u * 8u, value${n});`).join('\n')}
    {
      let at = query * ${scorePitch}u + member;
      var low = scores[at / 4u] * ${float(scale * Math.LOG2E)};
      var high = scores[at / 4u + 1u] * ${float(scale * Math.LOG2E)};
      if (b * ${keys}u + ${keys}u > position + 1u) {
        let here = vec4u(0u, 1u, 2u, 3u) + b * ${keys}u + member;
        low = select(vec4f(-1e30), low, here <= vec4u(position + query));
        high = select(vec4f(-1e30), high, here + 4u <= vec4u(position + query));
      }
      let highest = max(low, high);
      var block_top = max(max(highest.x, highest.y), max(highest.z, highest.w));
      block_top = max(block_top, subgroupShuffleXor(block_top, 1u));
      block_top = max(block_top, subgroupShuffleXor(block_top, 2u));
      let moves = block_top > top + 8.0;
      let next = select(top, block_top, moves);
      let factor = exp2(max(top - next, -100.0));
      top = next;
      low = exp2(low - top);
      high = exp2(high - top);
      store_weights(query * ${weightPitch}u + member, eight_of(low, high));
      let sum = low + high;
      total = total * factor + (sum.x + sum.y) + (sum.z + sum.w);
      if (moves && b > 0u) { moved[subgroup] = 1u; }
      if (member == 0u) { shrink[query] = factor; }
    }
    workgroupBarrier();
    let rescale = workgroupUniformLoad(&moved);
    if (${upTo(8)
      .map((n) => `rescale[${n}]`)
      .join(' + ')} > 0u) {
${tiles
  .map((c) =>
    through(
      c,
      `      for (var e = own; e < 64u; e += 32u) { scores[mine / 4u + e] *= shrink[down + e / 4u]; }
      workgroupBarrier();
      o${c} = ${loadSums('scores', 'mine', 16)};`,
    ),
  )
  .join('\n')}
    }
${upTo(keys / 16)
  .map(
    (k) => `    {
      let p = ${load('Left', 'row', 'weights', `down * ${weightPitch}u + ${16 * k}u`, weightPitch)};
${tiles.map((c) => `      ${multiply(`o${c}`, 'p', load('Right', 'row', 'rows', `${16 * k * pitch}u + ${columnOf(c)} * 16u`, pitch))}`).join('\n')}
    }`,
  )
  .join('\n')}
  }
  workgroupBarrier();
  total += subgroupShuffleXor(total, 1u);
  total += subgroupShuffleXor(total, 2u);
  shrink[query] = 1.0 / total;
${tiles
  .map((c) =>
    through(
      c,
      `      if (down + own / 2u < tile.z) {
        let r = down + own / 2u;
        let column = ${columnOf(c)} * 16u + own % 2u * 8u;
        let at = mine / 4u + own * 2u;
        y[(((first + r) * ${heads}u + head) * ${headDim}u + column) / 8u] = eight_of(scores[at] * shrink[r], scores[at + 1u] * shrink[r]);
      }`,
    ),
  )
  .join('\n')}`,
  });

  function columnOf(c: number): string {
    return `min(side * ${across}u + ${c}u, ${last}u)`;
  }
}

function through(c: number, change: string): string {
  return `      ${storeSums('scores', 'mine', `o${c}`, 16)}
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
