import { type Element, float, type Kernel, kernel, upTo } from './kernel.js';
import { eightFunctions } from './matrices.js';
import { type QueryKeyTypes, ropeEights, turnFours, turnsByFours } from './rope.js';
import type { AttentionShape } from './softmax-attention.js';
import { countPart, cutsOf, joinModule, joinParts, storePart } from './split-join.js';
import { foursOf, loadType, loadWidth } from './vector-options.js';

// Attention of the tokens of short rows, split over the cache where it is long, so that a few queries fill the machine; the parts
// are joined as split-join.ts says. Every subgroup goes through keys of its own and meets the others at the end: nothing but the
// shuffles of a subgroup lies between its loads and its sums.

/** Query heads of one kv head that a workgroup serves together, so that keys and values are read once for them. */
export function headsTogether({ heads, kvHeads }: AttentionShape): number {
  const shared = heads / kvHeads;
  return [4, 3, 2].find((count) => shared % count === 0) ?? 1;
}

/** Whether the kernels can be used: 16-byte loads, a few a lane at most. */
export function splittable({ headDim, rope }: AttentionShape, type: Element, lanes: number): boolean {
  const width = loadWidth[type];
  return lanes >= 4 && headDim % width === 0 && headDim / width <= 4 * lanes && turnsByFours(rope, width);
}

/** Workgroups of a split. */
export function splitGroups(shape: AttentionShape): number {
  const together = headsTogether(shape);
  return (shape.heads / together) * cutsOf(together);
}

/** Keys of a split from which on it is cut where heads share keys. */
const longSplit = 1024;

/** How a workgroup reads: `team` lanes share a key, of which each has `columns` loads; `keys` of a subgroup in a round. */
interface Cut {
  readonly subgroups: number;
  readonly team: number;
  readonly columns: number;
  readonly abreast: number;
  readonly turns: number;
  readonly keys: number;
}

function cutOf({ headDim }: AttentionShape, type: Element, lanes: number, threads: number): Cut {
  const vectors = headDim / loadWidth[type];
  let team = 1;
  while (team < vectors && team < lanes) team *= 2;
  const columns = Math.ceil(vectors / team);
  const abreast = lanes / team;
  const turns = Math.max(1, Math.floor(4 / columns));
  const subgroups = Math.min(8, Math.floor(threads / lanes), Math.floor(4096 / headDim));
  return { subgroups, team, columns, abreast, turns, keys: turns * abreast };
}

/**
 * y [tokens, heads*headDim]. q [tokens, heads*headDim], k and v [tokens, kvHeads*headDim] of the step, q and k of their own types,
 * which the cache [slots, kvHeads, tokens, headDim] of turned keys takes in: tokens of the step are read from k and v, those before
 * from the cache. parts [splits, partsWidth]: zeros before and after. One workgroup a split and group of heads, of which there are
 * splitGroups.
 */
export function splitAttention(
  shape: AttentionShape,
  type: Element,
  step: QueryKeyTypes,
  lanes: number,
  threads = 256,
): Kernel {
  const { heads, kvHeads, headDim, rope } = shape;
  const cut = cutOf(shape, type, lanes, threads);
  const { subgroups, team, columns, keys } = cut;
  const width = loadWidth[type];
  const vectors = headDim / width;
  const load = loadType(type);
  const together = upTo(headsTogether(shape));
  return kernel({
    name: 'split-attention',
    buffers: {
      q: [loadType(step.q), 'read'],
      k: [loadType(step.k), 'read'],
      v: [load, 'read'],
      ...(rope ? ropeEights : {}),
      info: ['u32', 'read'],
      keys: [load, 'write'],
      values: [load, 'write'],
      parts: ['atomic<u32>', 'write'],
      y: [outOf(type), 'write'],
    },
    subgroups: true,
    module: `${type === 'f16' ? eightFunctions : ''}
${rope ? turnFours(rope) : ''}
${joinModule(together.length)}
var<workgroup> sums: array<vec4f, ${(subgroups * headDim) / 4}>;
var<workgroup> tops: array<vec2f, ${subgroups}>; // maximum and sum`,
    size: subgroups * lanes,
    main: `${together.length === 1 ? whole : halves}
  let row = split_row_at(group.x);
  let kv = head_group / ${heads / kvHeads / together.length}u;
  let head = head_group * ${together.length}u;
  let count = split.z;
  let old = max(row.y, split.y) - split.y; // of these the cache holds this many, or more
  let cache = (row.x * ${kvHeads}u + kv) * info[0] + split.y;
  let step = row.z + split.y - row.y; // index of the first key in the step, if it was one of it
  let last = min(max(old, 1u), count) - 1u;
  let member = sub_lane % ${team}u;
  let place = sub_lane / ${team}u;
  let subgroup = lane / ${lanes}u;
  let position = row.w;
${upTo(columns)
  .map((j) => `  let column${j} = min(member + ${j * team}u, ${vectors - 1}u);`)
  .join('\n')}
${together.flatMap((h) => queriesOf(shape, type, step.q, cut, h)).join('\n')}
  // Whole workgroups go round: the shuffles need every lane.
  for (var block = 0u; block < count; block += ${subgroups * keys}u) {
    let first = block + subgroup * ${keys}u;
${fetch(cut, vectors)}
    if (old < count && first + ${keys}u > old) {
${ownOf(shape, type, step.k, cut)}
    }
${together.flatMap((h) => scoresOf(type, cut, lanes, h)).join('\n')}
  }
${countPart(shape)}
${together.map((h) => finish(shape, type, cut, lanes, h)).join('\n')}
${joinParts(shape, together.length, subgroups * lanes, (four, at) => `y[${at}] = ${packed(type, four)};`)}`,
  });
}

/** WGSL of what a workgroup does: a split (as split_at), its part, the token's parts (first, how many) and the group of heads. */
const whole = `  let split = split_at(group.x);
  let part = group.x;
  let token_parts = token_splits_at(group.x).xy;
  let head_group = group.y;`;

/** The same where long splits are cut in two: the other workgroup of a short one has nothing to do. */
const halves = `  let whole_split = split_at(group.x);
  let splits = token_splits_at(group.x);
  let cuts = select(1u, 2u, splits.z >= ${longSplit}u);
  let cut = group.y % 2u;
  if (cut >= cuts) { return; }
  let part = 2u * splits.x + (group.x - splits.x) * cuts + cut;
  let token_parts = vec2u(2u * splits.x, splits.y * cuts);
  let share = (whole_split.z + cuts - 1u) / cuts;
  let skipped = min(cut * share, whole_split.z);
  let split = vec4u(whole_split.x, whole_split.y + skipped, min(share, whole_split.z - skipped), 0u);
  let head_group = group.y / 2u;`;

const outOf = (type: Element): 'vec2u' | 'vec4f' => (type === 'f16' ? 'vec2u' : 'vec4f');

/** WGSL of four numbers as the output has them. */
const packed = (type: Element, four: string): string =>
  type === 'f16' ? `vec2u(pack2x16float(${four}.xy), pack2x16float(${four}.zw))` : four;

/** WGSL that loads a column of a head, `width` features in type `from`, which begins at column `base`, and of its fours, turned. */
function turned(
  { rope }: AttentionShape,
  width: number,
  of: 'q' | 'k',
  from: Element,
  base: string,
  column: string,
): { readonly loads: string; readonly fours: readonly string[] } {
  const parts = width / loadWidth[from];
  const load = (name: string, at: string) =>
    parts === 1
      ? `let ${name} = ${of}[${at}];`
      : upTo(parts)
          .map((n) => `let ${name}${n} = ${of}[${parts}u * (${at}) + ${n}u];`)
          .join(' ');
  const foursIn = (name: string) => (parts === 1 ? foursOf(from, name) : upTo(parts).map((n) => `${name}${n}`));
  const own = foursIn('own');
  const loads = load('own', `${base} + ${column}`);
  if (!rope) return { loads, fours: own };
  const other = foursIn('other');
  return {
    loads: `${loads} ${load('other', `${base} + partner(${column} * ${width}u) / ${width}u`)}`,
    fours: own.map((four, i) => `turn_four(${four}, ${other[i]}, ${column} * ${width}u + ${4 * i}u, position, 1.0)`),
  };
}

/** WGSL of the key of a turn. */
const keyOf = ({ abreast }: Cut, t: number): string => `(first + ${t * abreast}u + place)`;

/** All loads of a round, a{turn}_{column} of keys and b{turn}_{column} of values. */
function fetch(cut: Cut, vectors: number): string {
  const each = (name: string, of: string) =>
    upTo(cut.turns).flatMap((t) =>
      upTo(cut.columns).map(
        (j) => `    var ${name}${t}_${j} = ${of}[(cache + min(${keyOf(cut, t)}, last)) * ${vectors}u + column${j}];`,
      ),
    );
  return [...each('a', 'keys'), ...each('b', 'values')].join('\n');
}

/** The queries of a head, as the lanes of a team share them, and what a subgroup has of the result. */
function queriesOf(shape: AttentionShape, type: Element, from: Element, { team, columns }: Cut, h: number): string[] {
  const { heads, headDim, scale } = shape;
  const vectors = headDim / loadWidth[type];
  const base = `(split.x * ${heads}u + head + ${h}u) * ${vectors}u`;
  const each = upTo(columns).flatMap((j) => {
    const { loads, fours } = turned(shape, loadWidth[type], 'q', from, base, `column${j}`);
    const inside = (j + 1) * team <= vectors ? undefined : `member + ${j * team}u < ${vectors}u`;
    const own = fours.map((four) => `${four} * ${float(scale)}`);
    return [
      ...fours.map((_, i) => `  var q${h}_${j}_${i}: vec4f; var o${h}_${j}_${i} = vec4f();`),
      `  { ${loads}`,
      ...own.map((four, i) => `  q${h}_${j}_${i} = ${inside ? `select(vec4f(), ${four}, ${inside})` : four};`),
      '  }',
    ];
  });
  return [...each, `  var top${h} = -3e38;`, `  var total${h} = 0.0;`];
}

/** Keys and values of the step replace what the cache does not hold yet; those of the token itself go there. */
function ownOf(shape: AttentionShape, type: Element, from: Element, cut: Cut): string {
  const { heads, kvHeads, headDim } = shape;
  const vectors = headDim / loadWidth[type];
  return upTo(cut.turns)
    .map((t) => {
      const each = upTo(cut.columns).map((j) => {
        const { loads, fours } = turned(shape, loadWidth[type], 'k', from, `at * ${vectors}u`, `column${j}`);
        return `        { ${loads} a${t}_${j} = ${type === 'f16' ? `eight_of(${fours.join(', ')})` : fours[0]}; }
        b${t}_${j} = v[at * ${vectors}u + column${j}];
        if (position == row.w && head % ${heads / kvHeads}u == 0u) {
          keys[(cache + n) * ${vectors}u + column${j}] = a${t}_${j};
          values[(cache + n) * ${vectors}u + column${j}] = b${t}_${j};
        }`;
      });
      return `      if (${keyOf(cut, t)} >= old && ${keyOf(cut, t)} < count) {
        let n = ${keyOf(cut, t)};
        let position = split.y + n;
        let at = (step + n) * ${kvHeads}u + kv;
${each.join('\n')}
      }`;
    })
    .join('\n');
}

/** Scores of a round and a head, and the values by them, all brought to a new maximum. */
function scoresOf(type: Element, cut: Cut, lanes: number, h: number): string[] {
  const { team, columns, turns } = cut;
  const parts = upTo(columns).flatMap((j) => foursOf(type, '').map((_, i) => `${j}_${i}`));
  const scores = upTo(turns).flatMap((t) => {
    const dots = upTo(columns).flatMap((j) =>
      foursOf(type, `a${t}_${j}`).map((four, i) => `dot(${four}, q${h}_${j}_${i})`),
    );
    return [
      `var s${t} = ${dots.join(' + ')};`,
      ...bitsOf(1, team).map((bit) => `s${t} += subgroupShuffleXor(s${t}, ${bit}u);`),
      `s${t} = select(-3e38, s${t}, ${keyOf(cut, t)} < count);`,
      `top = max(top, s${t});`,
    ];
  });
  const values = upTo(turns).map((t) => {
    const adds = upTo(columns).flatMap((j) =>
      foursOf(type, `b${t}_${j}`).map((four, i) => `o${h}_${j}_${i} += weight * ${four};`),
    );
    return `{ let weight = select(0.0, exp(s${t} - top), ${keyOf(cut, t)} < count); total${h} += weight; ${adds.join(' ')} }`;
  });
  return [
    '{',
    `var top = top${h};`,
    ...scores,
    ...bitsOf(team, lanes).map((bit) => `top = max(top, subgroupShuffleXor(top, ${bit}u));`),
    `let less = exp(top${h} - top);`,
    `top${h} = top;`,
    `total${h} *= less;`,
    ...parts.map((part) => `o${h}_${part} *= less;`),
    ...values,
    '}',
  ].map((line) => `    ${line}`);
}

/** Powers of two from one to below another. */
function bitsOf(from: number, to: number): number[] {
  return upTo(Math.log2(to / from)).map((n) => from * 2 ** n);
}

/** Adds what the subgroups have of a head: y where the token has one part, else that. */
function finish(shape: AttentionShape, type: Element, cut: Cut, lanes: number, h: number): string {
  const { heads, headDim } = shape;
  const { subgroups, team, columns } = cut;
  const [fourths, each] = [headDim / 4, loadWidth[type] / 4];
  const parts = upTo(columns).flatMap((j) => upTo(each).map((i) => ({ j, i, name: `o${h}_${j}_${i}` })));
  const over = bitsOf(team, lanes).flatMap((bit) =>
    [`total${h}`, ...parts.map(({ name }) => name)].map((name) => `  ${name} += subgroupShuffleXor(${name}, ${bit}u);`),
  );
  const puts = parts.map(
    ({ j, i, name }) => `    sums[subgroup * ${fourths}u + column${j} * ${each}u + ${i}u] = ${name};`,
  );
  return `${over.join('\n')}
  if (place == 0u) {
${puts.join('\n')}
  }
  if (sub_lane == 0u) { tops[subgroup] = vec2f(top${h}, total${h}); }
  workgroupBarrier();
  for (var c = lane; c < ${fourths}u; c += ${subgroups * lanes}u) {
    var top = -3e38;
    for (var n = 0u; n < ${subgroups}u; n++) { top = max(top, tops[n].x); }
    var total = 0.0;
    var sum = vec4f();
    for (var n = 0u; n < ${subgroups}u; n++) {
      let weight = exp(tops[n].x - top);
      total += weight * tops[n].y;
      sum += weight * sums[n * ${fourths}u + c];
    }
    if (token_parts.y == 1u) {
      let mean = sum / total;
      y[(split.x * ${heads}u + head + ${h}u) * ${fourths}u + c] = ${packed(type, 'mean')};
    } else {
${storePart(shape, h)}
    }
  }
  workgroupBarrier();`;
}
