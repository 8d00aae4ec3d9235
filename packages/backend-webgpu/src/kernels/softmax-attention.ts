import type { Rope } from '@dsla/spec';
import { ringFunction, type Window } from './cache.js';
import { type Element, float, type Kernel, kernel, reductions, shortRow } from './kernel.js';
import { ropeBuffer, ropeFunctions } from './rope.js';

export interface AttentionShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly rope?: Rope | undefined;
}

/** Joins the window's sums with those of a dual state (see dualLinearAttention in the specification). */
export interface Join {
  readonly outputNorm?: { readonly eps: number } | undefined;
}

const size = 64;

/**
 * Every query, of type `q`, over a cache [slots, kvHeads, tokens, headDim] of turned keys. q, y [tokens, heads*headDim]. The
 * definition; with `longOnly` it leaves the tokens of short rows to others.
 */
export function cachedAttention(shape: AttentionShape, type: Element, q: Element, longOnly = false): Kernel {
  const { kvHeads, headDim, rope } = shape;
  return kernel({
    name: 'cached-attention',
    buffers: {
      q: [q, 'read'],
      ...(rope ? ropeBuffer : {}),
      keys: [type, 'read'],
      values: [type, 'read'],
      info: ['u32', 'read'],
      y: [type, 'write'],
    },
    module: moduleOf(shape),
    size,
    main: online(shape, {
      visible: `${longOnly ? `  if (row.w <= ${shortRow}u) { return; }\n` : ''}  let visible = token.z + 1u;
  let cache = (row.x * ${kvHeads}u + kv) * info[0];`,
      entry: `(cache + n) * ${headDim}u`,
      key: 'f32(keys[entry + c])',
      value: 'f32(values[entry + c])',
      finish: finishPlain(shape, type),
    }),
  });
}

/**
 * Every query, of type `q`, over the last `window` tokens and the sinks: those before the step lie in a ring of turned keys [slots,
 * kvHeads, sinks + size, headDim], the others are the step's own k (turned) and v [tokens, kvHeads*headDim]. With `shortOnly`
 * it leaves the tokens of long rows to others, with a `join` those of short rows.
 */
export function windowAttention(
  shape: AttentionShape,
  window: Window,
  type: Element,
  q: Element,
  join?: Join,
  shortOnly = false,
): Kernel {
  const { kvHeads, headDim, rope } = shape;
  const entries = window.sinks + window.size;
  return kernel({
    name: join ? 'window-attention-join' : 'window-attention',
    buffers: {
      q: [q, 'read'],
      ...(rope ? ropeBuffer : {}),
      k: [type, 'read'],
      v: [type, 'read'],
      keys: [type, 'read'],
      values: [type, 'read'],
      ...(join ? { sums: ['f32', 'read'] as const, log_weight: ['f32', 'read'] as const } : {}),
      ...(join?.outputNorm ? { norm: ['f32', 'read'] as const } : {}),
      y: [type, 'write'],
    },
    module: `${moduleOf(shape)}
${ringFunction(window)}
struct Entry { ring: bool, at: u32 }
// Where a head of token j lies: in the ring or among the tokens of this step.
fn entry_of(j: u32, row: vec4u, kv: u32) -> Entry {
  if (j < row.y) { return Entry(true, ((row.x * ${kvHeads}u + kv) * ${entries}u + ring_index(j)) * ${headDim}u); }
  return Entry(false, ((row.z + j - row.y) * ${kvHeads}u + kv) * ${headDim}u);
}
fn key_at(entry: Entry, c: u32) -> f32 {
  if (entry.ring) { return f32(keys[entry.at + c]); }
  return f32(k[entry.at + c]);
}
fn value_at(entry: Entry, c: u32) -> f32 {
  if (entry.ring) { return f32(values[entry.at + c]); }
  return f32(v[entry.at + c]);
}`,
    size,
    main: online(shape, {
      visible: `${join ? `  if (row.w <= ${shortRow}u) { return; }\n` : shortOnly ? `  if (row.w > ${shortRow}u) { return; }\n` : ''}  let first = u32(max(i32(token.z) - ${window.size - 1}, 0));
  let sinks = min(${window.sinks}u, first);
  let visible = sinks + token.z - first + 1u;`,
      entry: 'entry_of(select(first + n - sinks, n, n < sinks), row, kv)',
      key: 'key_at(entry, c)',
      value: 'value_at(entry, c)',
      finish: join ? finishJoined(shape, type, join) : finishPlain(shape, type),
    }),
  });
}

function moduleOf({ headDim, rope }: AttentionShape): string {
  return `${rope ? ropeFunctions(rope) : ''}
${reductions(size)}
var<workgroup> query: array<f32, ${headDim}>;
var<workgroup> weights: array<f32, ${size}>;`;
}

interface Source {
  /** Declares `visible`, the number of keys. */
  readonly visible: string;
  /** Place of key `n`; `key` and `value` read feature `c` of it. */
  readonly entry: string;
  readonly key: string;
  readonly value: string;
  /** Uses acc (this lane's columns c = lane + 64 m), top and total. */
  readonly finish: string;
}

/** Softmax in one pass over blocks of 64 keys, one workgroup a query and head: running maximum, sum and weighted values. */
function online(shape: AttentionShape, source: Source): string {
  const { heads, kvHeads, headDim, scale, rope } = shape;
  const own = 'f32(q[base + c])';
  const turned = rope ? `turn(${own}, f32(q[base + partner(c)]), c, token.z, 1.0)` : own;
  return `  let token = token_at(group.x);
  let row = row_at(token.y);
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let base = (token.x * ${heads}u + head) * ${headDim}u;
  for (var c = lane; c < ${headDim}u; c += ${size}u) { query[c] = ${turned} * ${float(scale)}; }
  workgroupBarrier();
${source.visible}
  var acc: array<f32, ${Math.ceil(headDim / size)}>;
  var top = -3e38;
  var total = 0.0;
  for (var block = 0u; block < visible; block += ${size}u) {
    let keys_here = min(${size}u, visible - block);
    var score = -3e38;
    if (lane < keys_here) {
      let n = block + lane;
      let entry = ${source.entry};
      score = 0.0;
      for (var c = 0u; c < ${headDim}u; c++) { score += query[c] * ${source.key}; }
    }
    let next = max(top, max_all(score, lane));
    let weight = select(0.0, exp(score - next), lane < keys_here);
    let shrink = exp(max(top - next, -100.0));
    weights[lane] = weight;
    total = total * shrink + sum_all(weight, lane);
    for (var m = 0u; m < ${Math.ceil(headDim / size)}u; m++) { acc[m] *= shrink; }
    for (var b = 0u; b < keys_here; b++) {
      let n = block + b;
      let entry = ${source.entry};
      for (var c = lane; c < ${headDim}u; c += ${size}u) { acc[c / ${size}u] += weights[b] * ${source.value}; }
    }
    top = next;
    workgroupBarrier();
  }
${source.finish}`;
}

function finishPlain({ headDim }: AttentionShape, type: Element): string {
  return `  for (var c = lane; c < ${headDim}u; c += ${size}u) { y[base + c] = ${type}(acc[c / ${size}u] / total); }`;
}

// sums [tokens, heads, headDim + 1]: numerator and denominator of the states.
function finishJoined({ heads, headDim }: AttentionShape, type: Element, { outputNorm }: Join): string {
  const norm = outputNorm
    ? `  var squares = 0.0;
  for (var m = 0u; m < ${Math.ceil(headDim / size)}u; m++) { squares += acc[m] * acc[m]; }
  let rms = inverseSqrt(sum_all(squares, lane) / ${float(headDim)} + ${float(outputNorm.eps)});`
    : '';
  return `  let share = exp(log_weight[head]);
  let state = (token.x * ${heads}u + head) * ${headDim + 1}u;
  let divisor = total + share * sums[state + ${headDim}u];
  for (var c = lane; c < ${headDim}u; c += ${size}u) {
    acc[c / ${size}u] = (acc[c / ${size}u] + share * sums[state + c]) / divisor;
  }
${norm}
  for (var c = lane; c < ${headDim}u; c += ${size}u) {
    y[base + c] = ${type}(acc[c / ${size}u]${outputNorm ? ' * rms * norm[c]' : ''});
  }`;
}
