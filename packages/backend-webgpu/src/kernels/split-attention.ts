import { type Element, float, type Kernel, kernel, splitKeys } from './kernel.js';
import { loadWidth } from './linear-vector.js';
import { ropeBuffer, ropeFunctions } from './rope.js';
import type { AttentionShape } from './softmax-attention.js';

// Attention of single tokens, split over the cache so that a few queries fill the machine; the parts are joined by `joinSplits`.

const size = 128;
const team = 4; // lanes that share a key

/** Query heads of one kv head that a workgroup serves together, so that keys and values are read once for them. */
export function headsTogether({ heads, kvHeads }: AttentionShape): number {
  const shared = heads / kvHeads;
  return [4, 3, 2].find((count) => shared % count === 0) ?? 1;
}

/** Whether the kernels can be used: 16-byte loads, and every lane of a workgroup has a column at most. */
export function splittable({ headDim }: AttentionShape, type: Element, lanes: number): boolean {
  return lanes >= team && headDim % loadWidth[type] === 0 && headDim / loadWidth[type] <= size;
}

/**
 * parts [splits, heads, headDim + 2]: weighted values, maximum and sum over the keys of a split. q [tokens, heads*headDim];
 * cache [slots, kvHeads, tokens, headDim] of turned keys. One workgroup a split and group of heads.
 */
export function splitAttention(shape: AttentionShape, type: Element): Kernel {
  const { heads, kvHeads, headDim, scale, rope } = shape;
  const width = loadWidth[type];
  const vectors = headDim / width;
  const together = headsTogether(shape);
  const shared = heads / kvHeads;
  const load = type === 'f16' ? 'vec4u' : 'vec4f';
  const subsets = Math.floor(size / vectors); // lanes that share a column in the second half
  const hs = [...Array(together).keys()];
  const own = 'f32(q[base + c])';
  const turned = rope ? `turn(${own}, f32(q[base + partner(c)]), c, token.z, 1.0)` : own;
  const halves =
    type === 'f16'
      ? ['unpack2x16float(a.x)', 'unpack2x16float(a.y)', 'unpack2x16float(a.z)', 'unpack2x16float(a.w)']
      : [];
  const fields = type === 'f16' ? halves.flatMap((half) => [`${half}.x`, `${half}.y`]) : ['a.x', 'a.y', 'a.z', 'a.w'];
  return kernel({
    name: 'split-attention',
    buffers: {
      q: [type, 'read'],
      ...(rope ? ropeBuffer : {}),
      keys: [load, 'read'],
      values: [load, 'read'],
      info: ['u32', 'read'],
      parts: ['f32', 'write'],
    },
    subgroups: true,
    module: `${rope ? ropeFunctions(rope) : ''}
var<workgroup> query: array<f32, ${together * headDim}>;
var<workgroup> scores: array<f32, ${together * splitKeys}>;
var<workgroup> sums: array<f32, ${subsets * headDim}>;
var<workgroup> tops: array<f32, ${size}>;`,
    size,
    main: `  let split = split_at(group.x);
  let token = token_at(split.x);
  let row = row_at(token.y);
  let kv = group.y / ${shared / together}u;
  let head = kv * ${shared}u + group.y % ${shared / together}u * ${together}u;
  for (var e = lane; e < ${together * headDim}u; e += ${size}u) {
    let c = e % ${headDim}u;
    let base = (token.x * ${heads}u + head + e / ${headDim}u) * ${headDim}u;
    query[e] = ${turned} * ${float(scale)};
  }
  workgroupBarrier();
  let cache = (row.x * ${kvHeads}u + kv) * info[0] + split.y;
  let count = min(${splitKeys}u, token.z + 1u - split.y);
  let member = lane % ${team}u;
  // Whole workgroups go round: the shuffles need every lane.
  for (var block = 0u; block < count; block += ${size / team}u) {
    let n = block + lane / ${team}u;
    let at = (cache + min(n, count - 1u)) * ${vectors}u;
${hs.map((h) => `    var s${h} = 0.0;`).join('\n')}
    for (var d = member; d < ${vectors}u; d += ${team}u) {
      let a = keys[at + d];
${fields.map((field, i) => `      let a${i} = ${field};`).join('\n')}
${hs
  .map(
    (h) =>
      `      s${h} += ${fields.map((_, i) => `a${i} * query[${h * headDim}u + d * ${width}u + ${i}u]`).join(' + ')};`,
  )
  .join('\n')}
    }
${hs
  .map(
    (h) => `    s${h} += subgroupShuffleXor(s${h}, 1u);
    s${h} += subgroupShuffleXor(s${h}, 2u);
    if (member == 0u) { scores[${h * splitKeys}u + n] = s${h}; }`,
  )
  .join('\n')}
  }
  let column = lane % ${vectors}u;
  let subset = lane / ${vectors}u;
${hs
  .map(
    (h) => `  workgroupBarrier();
  {
    let base = ${h * splitKeys}u;
    var top = -3e38;
    for (var n = lane; n < ${splitKeys}u; n += ${size}u) { top = max(top, select(-3e38, scores[base + n], n < count)); }
    top = subgroupMax(top);
    tops[lane] = top;
    workgroupBarrier();
    for (var n = 0u; n < ${size}u; n += sub_size) { top = max(top, tops[n]); }
    var total = 0.0;
    for (var n = lane; n < ${splitKeys}u; n += ${size}u) {
      let weight = select(0.0, exp(scores[base + n] - top), n < count);
      scores[base + n] = weight;
      total += weight;
    }
    total = subgroupAdd(total);
    workgroupBarrier();
    tops[lane] = total;
    workgroupBarrier();
    total = 0.0;
    for (var n = 0u; n < ${size}u; n += sub_size) { total += tops[n]; }
    let out = (group.x * ${heads}u + head + ${h}u) * ${headDim + 2}u;
    if (lane == 0u) {
      parts[out + ${headDim}u] = top;
      parts[out + ${headDim + 1}u] = total;
    }
  }`,
  )
  .join('\n')}
${hs.map((h) => fields.map((_, i) => `  var o${h}_${i} = 0.0;`).join('\n')).join('\n')}
  if (subset < ${subsets}u) {
    for (var n = subset; n < count; n += ${subsets}u) {
      let a = values[(cache + n) * ${vectors}u + column];
${fields.map((field, i) => `      let a${i} = ${field};`).join('\n')}
${hs
  .map(
    (h) => `      let p${h} = scores[${h * splitKeys}u + n];
${fields.map((_, i) => `      o${h}_${i} += p${h} * a${i};`).join('\n')}`,
  )
  .join('\n')}
    }
  }
${hs
  .map(
    (h) => `  workgroupBarrier();
  if (subset < ${subsets}u) {
${fields.map((_, i) => `    sums[subset * ${headDim}u + column * ${width}u + ${i}u] = o${h}_${i};`).join('\n')}
  }
  workgroupBarrier();
  for (var c = lane; c < ${headDim}u; c += ${size}u) {
    var sum = 0.0;
    for (var n = 0u; n < ${subsets}u; n++) { sum += sums[n * ${headDim}u + c]; }
    parts[(group.x * ${heads}u + head + ${h}u) * ${headDim + 2}u + c] = sum;
  }`,
  )
  .join('\n')}`,
  });
}

/** y [tokens, heads*headDim] of the single tokens: their parts, brought to one maximum. */
export function joinSplits({ heads, headDim }: AttentionShape, type: Element): Kernel {
  const width = headDim + 2;
  const part = `parts[((single.y + n) * ${heads}u + group.y) * ${width}u`;
  return kernel({
    name: 'join-splits',
    buffers: { parts: ['f32', 'read'], y: [type, 'write'] },
    size: 64,
    main: `  let single = single_at(group.x);
  let token = token_at(single.x);
  var top = -3e38;
  for (var n = 0u; n < single.z; n++) { top = max(top, ${part} + ${headDim}u]); }
  var total = 0.0;
  for (var n = 0u; n < single.z; n++) { total += ${part} + ${headDim + 1}u] * exp(${part} + ${headDim}u] - top); }
  for (var c = lane; c < ${headDim}u; c += 64u) {
    var sum = 0.0;
    for (var n = 0u; n < single.z; n++) { sum += ${part} + c] * exp(${part} + ${headDim}u] - top); }
    y[(token.x * ${heads}u + group.y) * ${headDim}u + c] = ${type}(sum / total);
  }`,
  });
}
