import { splitKeys, upTo } from './kernel.js';
import type { AttentionShape } from './softmax-attention.js';

// Parts of attention, joined by the workgroup of a token and its heads that is the last to arrive, in the dispatch that makes them.
//
// WGSL promises of atomics that each word by itself goes through one order of values, but nothing of the order of two words: that
// a workgroup sees another's count does not mean that it sees what that one stored. So nothing relies on such an order. A word of
// a part is zero until it is stored, never after (a zero is stored as -0), and who joins reads it until it is there; then it
// makes all words zero again, for the next dispatch. It waits only for workgroups that have counted: these wait for nobody, and
// what is relied on is that a device goes on with workgroups that it has begun, and that stores arrive in the end.

/** A split is cut in so many parts where it is long and heads share keys, so that few workgroups would be at work. */
export const cutsOf = (together: number): number => (together === 1 ? 1 : 2);

/** Words of the parts of a split: of each, weighted values, then maximum, sum, and in a token's first how many have arrived. */
export function partsWidth({ heads, headDim }: AttentionShape, together: number): number {
  return cutsOf(together) * heads * (headDim + 4);
}

/** Parts that a thread reads at once. */
const abreast = 8;

/** WGSL that the statements below use. */
export function joinModule(together: number): string {
  return `var<workgroup> arrived: u32;
// Of parts and heads: maximum and sum.
var<workgroup> part_tops: array<vec2f, ${splitKeys.splits * cutsOf(together) * together}>;
fn stored(x: f32) -> u32 { return select(bitcast<u32>(x), 0x80000000u, bitcast<u32>(x) == 0u); }`;
}

/** WGSL of the first word of a head's part. */
function wordOf({ heads, headDim }: AttentionShape, part: string, head: string): string {
  return `((${part}) * ${heads}u + head + ${head}) * ${headDim + 4}u`;
}

/** How many parts of the token have arrived, this one with them, in `arrived` of the workgroup after its next barrier. */
export function countPart(shape: AttentionShape): string {
  return `  if (lane == 0u) {
    arrived = 1u;
    if (token_parts.y > 1u) { arrived += atomicAdd(&parts[${wordOf(shape, 'token_parts.x', '0u')} + ${shape.headDim + 2}u], 1u); }
  }`;
}

/** Stores four of the weighted values `sum` at `c`, and beside the first four the head's maximum and sum. */
export function storePart(shape: AttentionShape, h: number): string {
  const { headDim } = shape;
  return `      let at = ${wordOf(shape, 'part', `${h}u`)};
${upTo(4)
  .map((i) => `      atomicStore(&parts[at + 4u * c + ${i}u], stored(sum[${i}]));`)
  .join('\n')}
      if (c == 0u) {
        atomicStore(&parts[at + ${headDim}u], stored(top));
        atomicStore(&parts[at + ${headDim + 1}u], stored(total));
      }`;
}

/** What the last workgroup of a token does for `together` heads: y by `put`, given four means and the index of their load. */
export function joinParts(
  shape: AttentionShape,
  together: number,
  size: number,
  put: (four: string, at: string) => string,
): string {
  const { heads, headDim } = shape;
  const words = together * headDim;
  const lines = (of: (i: number) => string) => upTo(abreast).map(of).join('\n');
  const load = (
    i: number,
  ) => `      at${i} = ${wordOf(shape, `token_parts.x + min(n + ${i}u, token_parts.y - 1u)`, 'h')} + c;
      word${i} = atomicLoad(&parts[at${i}]);`;
  return `  if (workgroupUniformLoad(&arrived) < token_parts.y || token_parts.y == 1u) { return; }
  for (var begin = 0u; begin < ${words}u; begin += ${size}u) {
    let e = min(begin + lane, ${words - 1}u);
    let h = e / ${headDim}u;
    let c = e % ${headDim}u;
    var top = -3e38;
    var total = 0.0;
    var sum = 0.0;
${lines((i) => `    var at${i}: u32; var word${i}: u32;`)}
    for (var n = 0u; n < token_parts.y; n += ${abreast}u) {
${lines(load)}
      if (begin + n == 0u) {
${joinTops(shape, together, size)}
      }
      if (n == 0u) {
        for (var i = 0u; i < token_parts.y; i++) { top = max(top, part_tops[i * ${together}u + h].x); }
      }
${lines(
  (i) => `      if (begin + lane < ${words}u && n + ${i}u < token_parts.y) {
        while (word${i} == 0u) { word${i} = atomicLoad(&parts[at${i}]); }
        atomicStore(&parts[at${i}], 0u);
        let part_top = part_tops[(n + ${i}u) * ${together}u + h];
        let weight = exp(part_top.x - top);
        total += weight * part_top.y;
        sum += weight * bitcast<f32>(word${i});
      }`,
)}
    }
    let mean = sum / total;
    let four = vec4f(mean, subgroupShuffleXor(mean, 1u), subgroupShuffleXor(mean, 2u), subgroupShuffleXor(mean, 3u));
    if (begin + lane < ${words}u && lane % 4u == 0u) {
      ${put('four', `((split.x * ${heads}u + head) * ${headDim / 4}u + e / 4u)`)}
    }
  }`;
}

/** Maxima and sums of all parts, while the first words are on their way; the count becomes zero. */
function joinTops(shape: AttentionShape, together: number, size: number): string {
  const { headDim } = shape;
  return `        for (var i = lane; i < token_parts.y * ${together}u; i += ${size}u) {
          let at = ${wordOf(shape, `token_parts.x + i / ${together}u`, `i % ${together}u`)} + ${headDim}u;
          var top = atomicLoad(&parts[at]);
          var total = atomicLoad(&parts[at + 1u]);
          while (top == 0u) { top = atomicLoad(&parts[at]); }
          while (total == 0u) { total = atomicLoad(&parts[at + 1u]); }
          atomicStore(&parts[at], 0u);
          atomicStore(&parts[at + 1u], 0u);
          part_tops[i] = vec2f(bitcast<f32>(top), bitcast<f32>(total));
        }
        if (lane == 0u) { atomicStore(&parts[${wordOf(shape, 'token_parts.x', '0u')} + ${headDim + 2}u], 0u); }
        workgroupBarrier();`;
}
