import { float, type Kernel, kernel, tileTokens, upTo } from './kernel.js';
import {
  eightFunctions,
  halves,
  load,
  loadSums,
  matrixTypes,
  multiply,
  pitchOf,
  scorePitchOf,
  storeSums,
} from './matrices.js';
import type { AttentionShape } from './softmax-attention.js';

const size = 256;
const keys = 32; // of a block
const scorePitch = scorePitchOf(keys);
const weightPitch = 2 * scorePitch; // weights take the place of scores
const scores = tileTokens * scorePitch; // of a half of the columns
const passTiles = 4; // of 16 columns of the queries that are staged at once, from each half
const passPitch = pitchOf(2 * passTiles * 16);

/** Head widths of this kernel; narrower ones fit tile-attention.ts. */
export function wideTileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim > 128 && headDim <= 512;
}

/**
 * As tileAttention, for wide heads: 64 queries of one head a workgroup over blocks of 32 keys, which are staged whole, then their
 * values in the same place. A subgroup of 32 lanes has 16 queries and half of the columns: of the queries, so that scores are the
 * sums of two subgroups, and of the result; for the softmax every query has four lanes. q [tokens, heads*headDim], turned
 * already; cache [slots, kvHeads, tokens, headDim].
 */
export function wideAttention(shape: AttentionShape): Kernel {
  const { heads, kvHeads, headDim } = shape;
  const { eights, pitch, across, tiles, loads } = planOf(headDim);
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
${halves('rows', Math.max(keys * pitch, tileTokens * passPitch))} // columns of queries, then keys and values in turns
${halves('scores', 4 * scores)} // float32 of each half of the columns, then weights and tiles of the result
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
  let mine = ${scores}u + subgroup * 256u;
  let query = lane / 4u;
  let member = own % 4u * 8u;
  var top = -1e30;
  var total = 0.0;
${loads.map((n) => `  var next${n} = vec4u();`).join('\n')}
${queries(heads, eights, across)}
${tiles.map((c) => `  var o${c} = Sum();`).join('\n')}
  for (var b = 0u; b * ${keys}u < visible; b++) {
${block(shape)}
    workgroupBarrier();
  }
${finish(shape)}`,
  });
}

/** What of a head is where. */
function planOf(headDim: number) {
  const eights = headDim / 8;
  const across = Math.ceil(headDim / 32); // tiles of a subgroup; of an odd number the last has two owners, one with zeros of q
  const last = headDim / 16 - 1;
  return {
    eights,
    across,
    pitch: pitchOf(headDim),
    tiles: upTo(across),
    loads: upTo(Math.ceil((keys * eights) / size)),
    place: (n: number) => `min(lane + ${n * size}u, ${keys * eights - 1}u)`,
    column: (c: number) => `min(side * ${across}u + ${c}u, ${last}u) * 16u`,
  };
}

/** What block b of keys adds: scores, their weights, the values by them. */
function block({ headDim, scale }: AttentionShape): string {
  const { eights, pitch, tiles, loads, place, column } = planOf(headDim);
  const fetch = (of: 'keys' | 'values') =>
    loads
      .map((n) => {
        const key = `min((b) * ${keys}u + ${place(n)} / ${eights}u, visible - 1u)`;
        return `    next${n} = ${of}[(cache + ${key}) * ${eights}u + ${place(n)} % ${eights}u];`;
      })
      .join('\n');
  const store = loads
    .map((n) => `    store_rows(${place(n)} / ${eights}u * ${pitch}u + ${place(n)} % ${eights}u * 8u, next${n});`)
    .join('\n');
  const part = (order: 'row' | 'col', k: number, c: number) =>
    load('Right', order, 'rows', `${16 * k * pitch}u + ${column(c)}`, pitch);
  const scored = (k: number) => `    {
      var s = Sum();
${tiles.map((c) => `      ${multiply('s', `q${c}`, part('col', k, c))}`).join('\n')}
      ${storeSums('scores', `side * ${scores}u + down * ${scorePitch}u + ${16 * k}u`, 's', scorePitch)}
    }`;
  const weighted = (k: number) => `    {
      let p = ${load('Left', 'row', 'scores', `down * ${weightPitch}u + ${16 * k}u`, weightPitch)};
${tiles.map((c) => `      ${multiply(`o${c}`, 'p', part('row', k, c))}`).join('\n')}
    }`;
  return `${fetch('keys')}
${store}
    if (lane < 8u) { moved[lane] = 0u; }
    // Before a barrier, behind which the compiler cannot put the loads off.
${fetch('values')}
    workgroupBarrier();
${upTo(keys / 16)
  .map(scored)
  .join('\n')}
    workgroupBarrier();
    // Values beyond the last token are the last one's, with a weight of 0.
${store}
${softmax(scale)}
    workgroupBarrier();
    let rescale = workgroupUniformLoad(&moved);
    if (${upTo(8)
      .map((n) => `rescale[${n}]`)
      .join(' + ')} > 0u) {
${tiles.map(rescaled).join('\n')}
    }
${upTo(keys / 16)
  .map(weighted)
  .join('\n')}`;
}

/** A tile of the result, brought to maxima that moved. */
function rescaled(c: number): string {
  return through(
    c,
    `      for (var e = own; e < 64u; e += 32u) {
        let scaled = bitcast<vec4f>(scores[mine / 4u + e]) * shrink[down + e / 4u];
        store_scores(2u * mine + 8u * e, bitcast<vec4u>(scaled));
      }
      workgroupBarrier();
      o${c} = ${loadSums('scores', 'mine', 16)};`,
  );
}

/** Writes the result. */
function finish({ heads, headDim }: AttentionShape): string {
  const { tiles, column } = planOf(headDim);
  const write = (c: number) =>
    through(
      c,
      `      if (down + own / 2u < tile.z) {
        let r = down + own / 2u;
        let column = ${column(c)} + own % 2u * 8u;
        let at = mine / 4u + own * 2u;
        y[(((first + r) * ${heads}u + head) * ${headDim}u + column) / 8u] =
          eight_of(bitcast<vec4f>(scores[at]) * shrink[r], bitcast<vec4f>(scores[at + 1u]) * shrink[r]);
      }`,
    );
  return `  total += subgroupShuffleXor(total, 1u);
  total += subgroupShuffleXor(total, 2u);
  shrink[query] = 1.0 / total;
${tiles.map(write).join('\n')}`;
}

/** Declares q0, q1 ...: the tiles of the queries of a subgroup; columns beyond the head's are zeros. */
function queries(heads: number, eights: number, across: number): string {
  const line = passTiles * 4; // eights of a query in a pass
  const passes = upTo(Math.ceil(across / passTiles)).map((pass) => {
    const stage = upTo((tileTokens * line) / size).map(
      (n) => `    {
      let line = lane / ${line}u + ${(n * size) / line}u;
      let half = lane % ${line}u / ${line / 2}u;
      let tile_of = ${pass * passTiles}u + lane % ${line / 2}u / 2u;
      let eight = (half * ${across}u + tile_of) * 2u + lane % 2u;
      let at = ((first + min(line, tile.z - 1u)) * ${heads}u + head) * ${eights}u + min(eight, ${eights - 1}u);
      store_rows(line * ${passPitch}u + lane % ${line}u * 8u, select(vec4u(), q[at], eight < ${eights}u && tile_of < ${across}u));
    }`,
    );
    const tiles = upTo(Math.min(passTiles, across - pass * passTiles)).map((t) => {
      const at = `down * ${passPitch}u + side * ${passTiles * 16}u + ${16 * t}u`;
      return `  let q${pass * passTiles + t} = ${load('Left', 'row', 'rows', at, passPitch)};`;
    });
    return [...stage, '  workgroupBarrier();', ...tiles, '  workgroupBarrier();'].join('\n');
  });
  return passes.join('\n');
}

/**
 * Weights of a block in the place of scores: what the four lanes of a query write depends on all that they have read. The running
 * maximum moves only when it is passed by more than 2^8.
 */
function softmax(scale: number): string {
  const factor = float(scale * Math.LOG2E);
  const sum = (n: number) =>
    `(bitcast<vec4f>(scores[at + ${n}u]) + bitcast<vec4f>(scores[at + ${scores / 4 + n}u])) * ${factor}`;
  return `    {
      let at = (query * ${scorePitch}u + member) / 4u;
      var low = ${sum(0)};
      var high = ${sum(1)};
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
      store_scores(query * ${weightPitch}u + member, eight_of(low, high));
      let sum = low + high;
      total = total * factor + (sum.x + sum.y) + (sum.z + sum.w);
      if (moves && b > 0u) { moved[subgroup] = 1u; }
      if (member == 0u) { shrink[query] = factor; }
    }`;
}

/** A tile of the result through workgroup memory. */
function through(c: number, change: string): string {
  return `      ${storeSums('scores', 'mine', `o${c}`, 16)}
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
