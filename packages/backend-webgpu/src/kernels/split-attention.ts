import { type Element, float, type Kernel, kernel, shortRow } from './kernel.js';
import { loadWidth } from './linear-vector.js';
import { ropeBuffer, ropeFunctions } from './rope.js';
import type { AttentionShape } from './softmax-attention.js';

// Attention of the tokens of short rows, split over the cache so that a few queries fill the machine; the parts are joined by
// `joinSplits`. A workgroup goes through its keys in blocks, whose loads are all on their way before any is used.

/** Loads of keys a lane has on its way, and about as many of values. */
const loadsAtOnce = 8;

/** Lanes of a workgroup: as few as a head needs took the least time on an H200 (docs/results/webgpu-decode.md). */
function sizeOf(vectors: number): number {
  return vectors <= 16 ? 64 : 128;
}

/** Query heads of one kv head that a workgroup serves together, so that keys and values are read once for them. */
export function headsTogether({ heads, kvHeads }: AttentionShape): number {
  const shared = heads / kvHeads;
  return [4, 3, 2].find((count) => shared % count === 0) ?? 1;
}

/** Whether the kernels can be used: 16-byte loads, and every lane of a workgroup has a column at most. */
export function splittable({ headDim }: AttentionShape, type: Element, lanes: number): boolean {
  return lanes >= 4 && headDim % loadWidth[type] === 0 && headDim / loadWidth[type] <= 128;
}

/** Numbers of a part: weighted values, then maximum and sum. */
export function partWidth({ headDim }: AttentionShape): number {
  return headDim + 4;
}

/** How a workgroup reads a block: `team` lanes share a key, in `passes`; `subsets` of lanes take the values in turns. */
interface Cut {
  readonly size: number;
  readonly team: number;
  readonly loads: number;
  readonly passes: number;
  readonly keys: number;
  readonly subsets: number;
}

function cutOf(vectors: number, lanes: number): Cut {
  const size = sizeOf(vectors);
  let team = 4;
  while (vectors / team > loadsAtOnce && team < Math.min(lanes, 32)) team *= 2;
  const loads = Math.ceil(vectors / team);
  const passes = Math.max(1, Math.floor(loadsAtOnce / loads));
  return { size, team, loads, passes, keys: (passes * size) / team, subsets: Math.floor(size / vectors) };
}

const list = (count: number): number[] => [...Array(count).keys()];

/** WGSL of the numbers in a load, as vectors of four. */
function fours(type: Element, load: string): string[] {
  if (type === 'f32') return [load];
  return ['xy', 'zw'].map(([a, b]) => `vec4f(unpack2x16float(${load}.${a}), unpack2x16float(${load}.${b}))`);
}

/**
 * parts [splits, heads, headDim + 4]: weighted values, maximum and sum over the keys of a split. q [tokens, heads*headDim], k and
 * v [tokens, kvHeads*headDim] of the step, which the cache [slots, kvHeads, tokens, headDim] of turned keys takes in: tokens of
 * the step are read from k and v, those before from the cache. One workgroup a split and group of heads.
 */
export function splitAttention(shape: AttentionShape, type: Element, lanes: number): Kernel {
  const { heads, kvHeads, headDim, rope } = shape;
  const width = loadWidth[type];
  const vectors = headDim / width;
  const together = headsTogether(shape);
  const load = type === 'f16' ? 'vec4u' : 'vec4f';
  const cut = cutOf(vectors, lanes);
  const { size } = cut;
  const blocks = blockOf(vectors, kvHeads, load, cut);
  const turned = (of: string) =>
    rope ? `turn(f32(${of}[base + c]), f32(${of}[base + partner(c)]), c, position, 1.0)` : `f32(${of}[base + c])`;
  const four = (of: string) => `vec4f(${list(4).map((i) => `${of}_at(base, c + ${i}u, position)`)})`;
  const packed =
    type === 'f16'
      ? `let low = ${four('k')};
    c += 4u;
    let high = ${four('k')};
    let a = vec4u(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));`
      : `let a = ${four('k')};`;
  return kernel({
    name: 'split-attention',
    buffers: {
      q: [type, 'read'],
      k: [type, 'read'],
      v: [load, 'read'],
      ...(rope ? ropeBuffer : {}),
      info: ['u32', 'read'],
      keys: [load, 'write'],
      values: [load, 'write'],
      parts: ['vec4f', 'write'],
    },
    subgroups: true,
    module: `${rope ? ropeFunctions(rope) : ''}
var<workgroup> query: array<vec4f, ${(together * headDim) / 4}>;
var<workgroup> own: array<${load}, ${shortRow * vectors}>; // keys of the step
var<workgroup> scores: array<f32, ${together * cut.keys}>;
var<workgroup> sums: array<vec4f, ${(cut.subsets * headDim) / 4}>;
fn q_at(base: u32, c: u32, position: u32) -> f32 { return ${turned('q')}; }
fn k_at(base: u32, c: u32, position: u32) -> f32 { return ${turned('k')}; }`,
    size,
    main: `  let split = split_at(group.x);
  let token = token_at(split.x);
  let row = row_at(token.y);
  let kv = group.y / ${heads / kvHeads / together}u;
  let head = group.y * ${together}u;
  let count = split.z;
  let old = max(row.y, split.y) - split.y; // of these the cache holds this many, or more
  let cache = (row.x * ${kvHeads}u + kv) * info[0] + split.y;
  let step = row.z + split.y - row.y; // index of the first key in the step, if it was one of it
  let last = min(max(old, 1u), count) - 1u;
  let member = lane % ${cut.team}u;
  let column = lane % ${vectors}u;
  let subset = lane / ${vectors}u;
  var block = 0u;
${blocks.declarations}
${blocks.keys}
${blocks.values}
  for (var e = lane; e < ${(together * headDim) / 4}u; e += ${size}u) {
    let base = token.x * ${heads * headDim}u + head * ${headDim}u + e / ${headDim / 4}u * ${headDim}u;
    let c = e % ${headDim / 4}u * 4u;
    let position = token.z;
    query[e] = ${four('q')} * ${float(shape.scale)};
  }
  for (var e = lane + old * ${vectors}u; e < count * ${vectors}u; e += ${size}u) {
    let n = e / ${vectors}u;
    let position = split.y + n;
    let base = ((step + n) * ${kvHeads}u + kv) * ${headDim}u;
    var c = e % ${vectors}u * ${width}u;
    ${packed}
    own[e - old * ${vectors}u] = a;
    if (position == token.z && head % ${heads / kvHeads}u == 0u) {
      keys[cache * ${vectors}u + e] = a;
      values[cache * ${vectors}u + e] = v[((step + n) * ${kvHeads}u + kv) * ${vectors}u + e % ${vectors}u];
    }
  }
  workgroupBarrier();
${list(together)
  .map((h) => state(h, width))
  .join('\n')}
  // Whole workgroups go round: the shuffles need every lane.
  loop {
${blocks.own}
${list(together)
  .map((h) => scoresOf(type, vectors, cut, h))
  .join('\n')}
    block += ${cut.keys}u;
    let more = block < count;
    if (more) {
${blocks.keys}
    }
    workgroupBarrier();
${list(together)
  .map((h) => weigh(type, cut, h))
  .join('\n')}
    if (!more) { break; }
${blocks.values}
    workgroupBarrier();
  }
${list(together)
  .map((h) => finish(shape, type, cut, h))
  .join('\n')}`,
  });
}

function state(h: number, width: number): string {
  const columns = list(width / 4).map((i) => `  var o${h}_${i} = vec4f();`);
  return `  var top${h} = -3e38;\n  var total${h} = 0.0;\n${columns.join('\n')}`;
}

/**
 * Loads of a block, each on its way as soon as what the one before has loaded is used: a{pass}_{load} of keys, b{load} of
 * values. `own`: those of the step replace what the cache does not hold yet.
 */
function blockOf(
  vectors: number,
  kvHeads: number,
  load: string,
  { size, team, loads, passes, subsets, keys }: Cut,
): { readonly declarations: string; readonly keys: string; readonly values: string; readonly own: string } {
  const taken = list(Math.ceil(keys / subsets));
  const key = (p: number) => `block + ${(p * size) / team}u + lane / ${team}u`;
  const value = (s: number) => `block + subset + ${s * subsets}u`;
  const of = (j: number) => `min(member + ${j * team}u, ${vectors - 1}u)`;
  const names = [...list(passes).flatMap((p) => list(loads).map((j) => `a${p}_${j}`)), ...taken.map((s) => `b${s}`)];
  const first = (at: string) => `(min(${at}, count - 1u) - old) * ${vectors}u`;
  const replace = [
    ...list(passes).map((p) => {
      const puts = list(loads).map((j) => `a${p}_${j} = own[${first(key(p))} + ${of(j)}];`);
      return `if (${key(p)} >= old) { ${puts.join(' ')} }`;
    }),
    ...taken.map((s) => {
      const at = `((step + min(${value(s)}, count - 1u)) * ${kvHeads}u + kv) * ${vectors}u + column`;
      return `if (${value(s)} >= old) { b${s} = v[${at}]; }`;
    }),
  ];
  const indent = (lines: readonly string[]) => lines.map((line) => `    ${line}`).join('\n');
  return {
    declarations: indent(names.map((name) => `var ${name} = ${load}();`)),
    keys: indent(
      list(passes).flatMap((p) =>
        list(loads).map((j) => `a${p}_${j} = keys[(cache + min(${key(p)}, last)) * ${vectors}u + ${of(j)}];`),
      ),
    ),
    values: indent(taken.map((s) => `b${s} = values[(cache + min(${value(s)}, last)) * ${vectors}u + column];`)),
    own: indent([`if (old < count && block + ${keys}u > old) {`, ...replace.map((line) => `  ${line}`), '}']),
  };
}

/** Scores of a block and a head: a lane of every team writes its keys'. */
function scoresOf(type: Element, vectors: number, { size, team, loads, passes, keys }: Cut, h: number): string {
  const each = loadWidth[type] / 4;
  return list(passes)
    .map((p) => {
      const products = list(loads).map((j) => {
        const at = `${h * vectors * each}u + (member + ${j * team}u) * ${each}u`;
        const sum = fours(type, `a${p}_${j}`).map((value, i) => `dot(${value}, query[${at} + ${i}u])`);
        const all = (j + 1) * team <= vectors;
        return `      ${all ? '' : `if (member + ${j * team}u < ${vectors}u) { `}s += ${sum.join(' + ')};${all ? '' : ' }'}`;
      });
      const shuffles = list(Math.log2(team)).map((bit) => `      s += subgroupShuffleXor(s, ${2 ** bit}u);`);
      const target = `scores[${h * keys + (p * size) / team}u + lane / ${team}u]`;
      return `    {
      var s = 0.0;
${[...products, ...shuffles].join('\n')}
      if (member == 0u) { ${target} = select(-3e38, s, block + ${(p * size) / team}u + lane / ${team}u < count); }
    }`;
    })
    .join('\n');
}

/** Adds the values of a block to what a lane has of its columns, all brought to a new maximum. */
function weigh(type: Element, { keys, subsets }: Cut, h: number): string {
  const columns = list(loadWidth[type] / 4);
  const values = list(Math.ceil(keys / subsets)).map((s) => {
    const weight = `select(0.0, exp(scores[${h * keys}u + min(subset + ${s * subsets}u, ${keys - 1}u)] - top), subset + ${s * subsets}u < ${keys}u)`;
    const adds = fours(type, `b${s}`).map((value, i) => `o${h}_${i} += weight * ${value};`);
    return `      { let weight = ${weight}; ${adds.join(' ')} }`;
  });
  return `    {
      var top = top${h};
      for (var n = sub_lane; n < ${keys}u; n += sub_size) { top = max(top, scores[${h * keys}u + n]); }
      top = subgroupMax(top);
      var total = 0.0;
      for (var n = sub_lane; n < ${keys}u; n += sub_size) { total += exp(scores[${h * keys}u + n] - top); }
      let less = exp(top${h} - top);
      total${h} = total${h} * less + subgroupAdd(total);
      top${h} = top;
${columns.map((i) => `      o${h}_${i} *= less;`).join('\n')}
${values.join('\n')}
    }`;
}

/** Adds what the lanes have of a column. */
function finish(shape: AttentionShape, type: Element, { size, subsets }: Cut, h: number): string {
  const fourths = shape.headDim / 4;
  const each = loadWidth[type] / 4;
  const out = `(group.x * ${shape.heads}u + head + ${h}u) * ${partWidth(shape) / 4}u`;
  const puts = list(each).map((i) => `    sums[subset * ${fourths}u + column * ${each}u + ${i}u] = o${h}_${i};`);
  return `  if (subset < ${subsets}u) {
${puts.join('\n')}
  }
  workgroupBarrier();
  for (var c = lane; c < ${fourths}u; c += ${size}u) {
    var sum = vec4f();
    for (var n = 0u; n < ${subsets}u; n++) { sum += sums[n * ${fourths}u + c]; }
    parts[${out} + c] = sum;
  }
  if (lane == 0u) { parts[${out} + ${fourths}u] = vec4f(top${h}, total${h}, 0.0, 0.0); }
  workgroupBarrier();`;
}

const joinSize = 256;

/** y [tokens, heads*headDim] of the single tokens: their parts, brought to one maximum. One workgroup a token and head. */
export function joinSplits(shape: AttentionShape, type: Element): Kernel {
  const { heads, headDim } = shape;
  const fourths = headDim / 4;
  const subsets = Math.max(1, Math.floor(joinSize / fourths));
  const y = type === 'f16' ? 'vec2u(pack2x16float(sum.xy), pack2x16float(sum.zw))' : 'sum';
  const part = `((single.y + n) * ${heads}u + group.y) * ${fourths + 1}u`;
  return kernel({
    name: 'join-splits',
    buffers: { parts: ['vec4f', 'read'], y: [type === 'f16' ? 'vec2u' : 'vec4f', 'write'] },
    subgroups: true,
    module: `var<workgroup> sums: array<vec4f, ${subsets * fourths}>;
var<workgroup> totals: array<f32, ${subsets}>;`,
    size: joinSize,
    main: `  let single = single_at(group.x);
  let token = token_at(single.x);
  var top = -3e38;
  for (var n = sub_lane; n < single.z; n += sub_size) { top = max(top, parts[${part} + ${fourths}u].x); }
  top = subgroupMax(top);
  for (var e = lane; e < ${subsets * fourths}u; e += ${joinSize}u) {
    let c = e % ${fourths}u;
    var total = 0.0;
    var sum = vec4f();
    for (var n = e / ${fourths}u; n < single.z; n += ${subsets}u) {
      let own = parts[${part} + ${fourths}u];
      let weight = exp(own.x - top);
      total += weight * own.y;
      sum += weight * parts[${part} + c];
    }
    sums[e] = sum;
    if (c == 0u) { totals[e / ${fourths}u] = total; }
  }
  workgroupBarrier();
  for (var c = lane; c < ${fourths}u; c += ${joinSize}u) {
    var total = 0.0;
    var sum = vec4f();
    for (var n = 0u; n < ${subsets}u; n++) {
      total += totals[n];
      sum += sums[n * ${fourths}u + c];
    }
    sum /= total;
    y[(token.x * ${heads}u + group.y) * ${fourths}u + c] = ${y};
  }`,
  });
}
