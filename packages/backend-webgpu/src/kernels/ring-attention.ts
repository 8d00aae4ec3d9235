import { type DualShape, entriesOf } from './dual-linear-attention.js';
import { type Reading, recordLayout, team } from './dual-record.js';
import { float, upTo } from './kernel.js';

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
  const subsets = Math.floor(size / words);
  const block = Math.min(size / team, entriesOf(form));
  const [keys, values] = [upTo(Math.ceil(words / team)), upTo(Math.ceil(block / subsets))];
  const word = (j: number) => `min(lane % ${team}u + ${j * team}u, ${words - 1}u)`;
  const place = (n: string) => `entry_at(begin + min(${n}, here - 1u), first, sinks, entries)`;
  const term = (j: number) => {
    const one = product(numbersOf(`key${j}`), `turned[h * ${words}u + ${word(j)}]`);
    return (j + 1) * team <= words ? one : `select(0.0, ${one}, lane % ${team}u + ${j * team}u < ${words}u)`;
  };
  const layout = recordLayout(shape, false);
  const score = upTo(team).map((m) => `partial[lane * ${team}u + ${m}u]`);
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
        let at = ${place(`lane / ${team}u`)};
${keys.map((j) => `        let key${j} = ring_k[at + ${word(j)}];`).join('\n')}
${values.map((i) => `        let value${i} = ring_v[${place(`subset + ${i * subsets}u`)} + lane % ${words}u];`).join('\n')}
        partial[lane] = ${keys.map(term).join('\n          + ')};
        workgroupBarrier();
        if (lane < here) { scores[lane] = (${score.join(' + ')}) * ${float(scale)}; }
        workgroupBarrier();
        var next = top;
        for (var n = 0u; n < here; n++) { next = max(next, scores[n]); }
        let shrink = exp(max(top - next, -100.0));
        top = next;
        total *= shrink;
        o *= shrink;
${values
  .map(
    (i) => `        {
          let n = min(subset + ${i * subsets}u, here - 1u);
          let inside = subset < ${subsets}u && subset + ${i * subsets}u < here;
          let weight = select(0.0, exp(scores[n] - top), inside);
          total += weight;
          o += weight * ${numbersOf(`value${i}`)};
        }`,
  )
  .join('\n')}
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
