import { type DualShape, entriesOf } from './dual-linear-attention.js';
import { type Reading, recordLayout, team } from './dual-record.js';
import { float } from './kernel.js';
import { upTo } from './matrices.js';

/** WGSL of the workgroup memory of ringAttention and of a function that it uses. */
export function ringMemory(size: number, queries: number, { words, numbers }: Reading): string {
  return `fn entry_at(n: u32, first: u32, sinks: u32, base: u32) -> u32 {
  return (base + ring_index(select(first + n - sinks, n, n < sinks))) * ${words}u;
}
var<workgroup> turned: array<${numbers}, ${queries * words}>; // queries
var<workgroup> partial: array<f32, ${size}>;
var<workgroup> scores: array<f32, ${size / team}>;
var<workgroup> joined: array<${numbers}, ${size}>;`;
}

/** WGSL of the exact part of query h to the record: softmax over the ring in one pass over blocks of entries. */
export function ringAttention(shape: DualShape, size: number, scale: number, reading: Reading): string {
  const { form } = shape;
  const { kvHeads, headDim, exact } = form;
  const { window, sinks } = exact!;
  const { each, words, numbers, numbersOf, product } = reading;
  const block = size / team;
  const subsets = Math.floor(size / words);
  const layout = recordLayout(shape, false);
  const score = upTo(team)
    .map((m) => `partial[lane * ${team}u + ${m}u]`)
    .join(' + ');
  const put =
    each === 1
      ? '        record[into + w] = sum;'
      : [0, 1, 2, 3].map((i) => `        record[into + 4u * w + ${i}u] = sum[${i}];`).join('\n');
  return `    {
      let first = max(position, ${window - 1}u) - ${window - 1}u;
      let sinks = min(${sinks}u, first);
      let visible = sinks + position - first + 1u;
      let entries = (row.x * ${kvHeads}u + kv) * ${entriesOf(form)}u;
      let subset = lane / ${words}u;
      var top = -3e38;
      var total = 0.0;
      var o = ${numbers}();
      for (var begin = 0u; begin < visible; begin += ${block}u) {
        let here = min(${block}u, visible - begin);
        var sum = 0.0;
        if (lane / ${team}u < here) {
          let at = entry_at(begin + lane / ${team}u, first, sinks, entries);
          for (var j = lane % ${team}u; j < ${words}u; j += ${team}u) {
            sum += ${product(numbersOf('ring_k[at + j]'), `turned[h * ${words}u + j]`)};
          }
        }
        partial[lane] = sum;
        workgroupBarrier();
        if (lane < here) { scores[lane] = (${score}) * ${float(scale)}; }
        workgroupBarrier();
        var next = top;
        for (var n = 0u; n < here; n++) { next = max(next, scores[n]); }
        let shrink = exp(max(top - next, -100.0));
        top = next;
        total *= shrink;
        o *= shrink;
        if (subset < ${subsets}u) {
          for (var n = subset; n < here; n += ${subsets}u) {
            let weight = exp(scores[n] - top);
            total += weight;
            o += weight * ${numbersOf(`ring_v[entry_at(begin + n, first, sinks, entries) + lane % ${words}u]`)};
          }
        }
      }
      joined[lane] = o;
      partial[lane] = total;
      workgroupBarrier();
      let into = out + ${layout.exact}u + h * ${headDim + 1}u;
      for (var w = lane; w < ${words}u; w += ${size}u) {
        var sum = ${numbers}();
        for (var s = 0u; s < ${subsets}u; s++) { sum += joined[s * ${words}u + w]; }
${put}
      }
      if (lane == 0u) {
        var sum = 0.0;
        for (var s = 0u; s < ${subsets}u; s++) { sum += partial[s * ${words}u]; }
        record[into + ${headDim}u] = sum;
      }
      workgroupBarrier();
    }`;
}
