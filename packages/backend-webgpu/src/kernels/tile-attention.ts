import { ringFunction, type Window } from './cache.js';
import { float, type Kernel, type KernelParts, kernel, tileTokens } from './kernel.js';
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

const size = 128;
const queryPass = 64; // columns of the queries that are staged at once

/** Keys of a block, among which a device chooses (see tune.ts): fewer take less workgroup memory and more barriers. */
export const blocksOfKeys = [64, 32] as const;
export type BlockOfKeys = (typeof blocksOfKeys)[number];

/** Head widths whose tiles fit the workgroup memory. */
export function tileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim <= 128;
}

/** Where the keys and values of a tile come from, and what becomes of the result. */
interface Source {
  readonly name: string;
  /** Keys of a block. */
  readonly keys: BlockOfKeys;
  readonly buffers: KernelParts['buffers'];
  readonly module: string;
  /** Declares `blocks`, the number of blocks of keys. */
  readonly blocks: string;
  /** First key of block b. */
  readonly first: (b: string) => string;
  /** Eight numbers of a key or value, by key. */
  readonly eight: (of: 'keys' | 'values', key: string, eight: string) => string;
  /** Condition that some key of block b is hidden from some query, and which of four keys are seen at a position. */
  readonly masked: string;
  readonly seen: (keys: string, position: string) => string;
  /** Sets shrink[query], the factor of the sums of a query, from top, peak (the true maximum) and total. */
  readonly finish: (r: number) => string;
  /** Four numbers added to four of the result. */
  readonly added: (r: string, c: string) => string;
}

/**
 * Attention of long rows in float16 by subgroup matrices: 64 queries of one head a workgroup over blocks of keys. A
 * subgroup of 32 lanes has 32 queries and half of the keys of the scores, and 32 queries and half of the columns of the result (16 and
 * all, where the columns have no halves); for the softmax it has 16 queries, four lanes each. q [tokens, heads*headDim] is
 * turned already; cache [slots, kvHeads, tokens, headDim]. The running maximum moves only when it is passed by more than 2^8,
 * so that the sums seldom leave their registers to be scaled.
 */
export function tileAttention(shape: AttentionShape, block: BlockOfKeys = 64): Kernel {
  const { kvHeads, headDim } = shape;
  const keys = headDim % 32 === 0 ? block : 64; // all lanes load as many
  return tiles(shape, {
    name: 'tile-attention',
    keys,
    buffers: { keys: ['vec4u', 'read'], values: ['vec4u', 'read'], info: ['u32', 'read'] },
    module: '',
    blocks: `  let blocks = (visible + ${keys - 1}u) / ${keys}u;
  let cache = (row.x * ${kvHeads}u + kv) * info[0];`,
    first: (b) => `(${b}) * ${keys}u`,
    eight: (of, key, eight) => `${of}[(cache + ${key}) * ${headDim / 8}u + ${eight}]`,
    masked: `b * ${keys}u + ${keys}u > position + 1u`,
    seen: (keys, at) => `${keys} <= vec4u(${at})`,
    finish: (r) => `  shrink[query${r}] = 1.0 / total${r};`,
    added: () => 'vec4f()',
  });
}

/**
 * As windowAttention of softmax-attention.ts, for long rows: of a tile the window is two or three blocks, the sinks are one
 * more. With `join` also joined with the sums of a dual state.
 */
export function tileWindow(shape: AttentionShape, window: Window, join: boolean): Kernel {
  const { heads, kvHeads, headDim } = shape;
  const entries = window.sinks + window.size;
  const eights = headDim / 8;
  const keys = 64;
  return tiles(shape, {
    name: join ? 'tile-window-join' : 'tile-window',
    keys,
    buffers: {
      k: ['vec4u', 'read'],
      v: ['vec4u', 'read'],
      keys: ['vec4u', 'read'],
      values: ['vec4u', 'read'],
      ...(join ? { sums: ['f32', 'read'] as const, log_weight: ['f32', 'read'] as const } : {}),
    },
    module: `${ringFunction(window)}
${(['keys', 'values'] as const)
  .map(
    (
      of,
    ) => `// In the ring or among the tokens of this step; both are loaded, since a load in a branch waits for the one before.
fn ${of}_at(j: u32, row: vec4u, kv: u32, eight: u32) -> vec4u {
  let old = j < row.y;
  let kept = ${of}[((row.x * ${kvHeads}u + kv) * ${entries}u + select(0u, ring_index(j), old)) * ${eights}u + eight];
  let fresh = ${of[0]}[((row.z + select(j - row.y, 0u, old)) * ${kvHeads}u + kv) * ${eights}u + eight];
  return select(fresh, kept, old);
}`,
  )
  .join('\n')}
${join ? `var<workgroup> shares: array<f32, ${tileTokens}>;` : ''}`,
    blocks: `  let low = u32(max(i32(position) - ${window.size - 1}, 0));
  let sinks = min(${window.sinks}u, low);
  let before = (sinks + ${keys - 1}u) / ${keys}u; // blocks of sinks
  let blocks = before + (visible - low + ${keys - 1}u) / ${keys}u;
${join ? '  let share = exp(log_weight[head]);' : ''}`,
    first: (b) => `select(low + (${b} - before) * ${keys}u, (${b}) * ${keys}u, ${b} < before)`,
    eight: (of, key, eight) => `${of}_at(${key}, row, kv, ${eight})`,
    masked: 'true',
    seen: (keys, at) =>
      `(${keys} < vec4u(select(visible, sinks, b < before))) & (${keys} <= vec4u(${at})) & ((${keys} + ${window.size}u > vec4u(${at})) | (${keys} < vec4u(${window.sinks}u)))`,
    finish: (r) =>
      join
        ? `  let factor${r} = exp2(top${r} - peak${r});
  let sum${r} = ((first + min(query${r}, tile.z - 1u)) * ${heads}u + head) * ${headDim + 1}u + ${headDim}u;
  let divisor${r} = total${r} * factor${r} + share * sums[sum${r}];
  shrink[query${r}] = factor${r} / divisor${r};
  shares[query${r}] = share / divisor${r};`
        : `  shrink[query${r}] = 1.0 / total${r};`,
    added: (r, c) => {
      const at = `((first + ${r}) * ${heads}u + head) * ${headDim + 1}u + ${c}`;
      const four = upTo(4).map((e) => `sums[${at} + ${e}u]`);
      return join ? `vec4f(${four.join(', ')}) * shares[${r}]` : 'vec4f()';
    },
  });
}

function tiles({ heads, kvHeads, headDim, scale }: AttentionShape, source: Source): Kernel {
  const { keys } = source;
  const eights = headDim / 8;
  const [pitch, scorePitch, weightPitch] = [pitchOf(headDim), scorePitchOf(keys), pitchOf(keys)];
  const queryPitch = pitchOf(Math.min(headDim, queryPass));
  const [two, deep] = [upTo(2), upTo(headDim / 16)];
  const side = upTo(keys / 32); // of 16 keys, for a subgroup
  const halved = headDim % 32 === 0;
  const [tall, wide] = halved ? [two, upTo(headDim / 32)] : [[0], deep];
  const base = halved ? 'down' : 'subgroup * 16u';
  const columns = halved ? `side * ${headDim / 2}u` : '0u';
  const loads = upTo((keys * eights) / size);
  const line = (n: number) => `((lane + ${n * size}u) / ${eights}u)`;
  const eight = (n: number) => `(lane + ${n * size}u) % ${eights}u`;
  const fetch = (name: string, read: (row: string, eight: string) => string, declare = 'let ') =>
    loads.map((n) => `    ${declare}${name}${n} = ${read(line(n), eight(n))};`).join('\n');
  const put = (name: string) =>
    loads.map((n) => `    store_rows(${line(n)} * ${pitch}u + ${eight(n)} * 8u, ${name}${n});`).join('\n');
  const kept = (of: 'keys' | 'values', b: string) => (row: string, at: string) =>
    source.eight(of, `min(${source.first(b)} + ${row}, visible - 1u)`, at);
  const out = tall.flatMap((r) => wide.map((c) => ({ r, c, name: `o${r}_${c}` })));
  return kernel({
    name: source.name,
    buffers: { q: ['vec4u', 'read'], ...source.buffers, y: ['vec4u', 'write'] },
    matrices: true,
    module: `${matrixTypes}
${halves('rows', Math.max(keys * pitch, tileTokens * queryPitch))} // some columns of the queries, then keys, then values
${fours('scores', tileTokens * scorePitch)} // and tiles of the result
${halves('weights', tileTokens * weightPitch)}
${eightFunctions}
var<workgroup> shrink: array<f32, ${tileTokens}>;
var<workgroup> moved: array<u32, 4>;
${source.module}`,
    size,
    main: `  // The longest first.
  let tile = tile_at(groups.x - 1u - group.x);
  let row = row_at(tile.x);
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let first = row.z + tile.y;
  let position = row.y + tile.y;
  let visible = position + tile.z;
${source.blocks}
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let down = subgroup / 2u * 32u;
  let side = subgroup % 2u;
${upTo(Math.ceil(headDim / queryPass))
  .map(queries)
  .join('\n')}
${out.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
  let mine = subgroup * 256u;
  let member = own % 4u * 8u;
${two
  .map(
    (r) => `  let query${r} = subgroup * 16u + ${8 * r}u + own / 4u;
  var top${r} = -1e30;
  var peak${r} = -1e30;
  var total${r} = 0.0;`,
  )
  .join('\n')}
${fetch('key', kept('keys', '0u'), 'var ')}
  for (var b = 0u; b < blocks; b++) {
    workgroupBarrier();
${put('key')}
    if (lane < 4u) { moved[lane] = 0u; }
    workgroupBarrier();
${fetch('value', kept('values', 'b'))}
    {
${two.flatMap((r) => side.map((c) => `      var s${r}${c} = Sum();`)).join('\n')}
${deep
  .map(
    (
      d,
    ) => `${side.map((c) => `      let k${d}_${c} = ${load('Right', 'col', 'rows', `(side * ${keys / 2}u + ${16 * c}u) * ${pitch}u + ${16 * d}u`, pitch)};`).join('\n')}
${two.flatMap((r) => side.map((c) => `      ${multiply(`s${r}${c}`, `q${r}_${d}`, `k${d}_${c}`)}`)).join('\n')}`,
  )
  .join('\n')}
${two.flatMap((r) => side.map((c) => `      ${storeSums('scores', `(down + ${16 * r}u) * ${scorePitch}u + side * ${keys / 2}u + ${16 * c}u`, `s${r}${c}`, scorePitch)}`)).join('\n')}
    }
    workgroupBarrier();
    // Values take the place of the keys. Those beyond the last token are the last one's, with a weight of 0.
${put('value')}
${two.map(softmax).join('\n')}
    workgroupBarrier();
    let rescale = workgroupUniformLoad(&moved);
    if (rescale[0] + rescale[1] + rescale[2] + rescale[3] > 0u) {
${out
  .map(({ r, name }) =>
    through(
      name,
      `      for (var e = own; e < 64u; e += 32u) { scores[mine / 4u + e] *= shrink[${base} + ${16 * r}u + e / 4u]; }
      workgroupBarrier();
      ${name} = ${loadSums('scores', 'mine', 16)};`,
    ),
  )
  .join('\n')}
    }
    // The last time they are fetched in vain.
${fetch('key', kept('keys', '(b + 1u)'), '')}
${upTo(keys / 16)
  .map(
    (k) => `    {
${tall.map((r) => `      let p${r} = ${load('Left', 'row', 'weights', `(${base} + ${16 * r}u) * ${weightPitch}u + ${16 * k}u`, weightPitch)};`).join('\n')}
${wide
  .map(
    (c) => `      let v${c} = ${load('Right', 'row', 'rows', `${16 * k * pitch + 16 * c}u + ${columns}`, pitch)};
${tall.map((r) => `      ${multiply(`o${r}_${c}`, `p${r}`, `v${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`,
  )
  .join('\n')}
  }
  workgroupBarrier();
${two
  .map(
    (r) => `  total${r} += subgroupShuffleXor(total${r}, 1u);
  total${r} += subgroupShuffleXor(total${r}, 2u);
${source.finish(r)}`,
  )
  .join('\n')}
${out
  .map(({ r, c, name }) =>
    through(
      name,
      `      {
        let r = ${base} + ${16 * r}u + own / 2u;
        let at = mine / 4u + own * 2u;
        if (r < tile.z) {
          let c = ${columns} + ${16 * c}u + own % 2u * 8u;
          let low = scores[at] * shrink[r] + ${source.added('r', 'c')};
          let high = scores[at + 1u] * shrink[r] + ${source.added('r', 'c + 4u')};
          y[(((first + r) * ${heads}u + head) * ${headDim}u + c) / 8u] = eight_of(low, high);
        }
      }`,
    ),
  )
  .join('\n')}`,
  });

  /** Queries as matrices, staged some columns at a time. */
  function queries(pass: number): string {
    const from = pass * queryPass;
    const columns = Math.min(headDim - from, queryPass);
    const at = (n: number) => ({
      row: `((lane + ${n * size}u) / ${columns / 8}u)`,
      eight: `(lane + ${n * size}u) % ${columns / 8}u`,
    });
    const value = (n: number) =>
      `q[((first + min(${at(n).row}, tile.z - 1u)) * ${heads}u + head) * ${eights}u + ${from / 8}u + ${at(n).eight}]`;
    const all = upTo((tileTokens * columns) / 8 / size);
    const places = two.flatMap((r) => upTo(columns / 16).map((d) => ({ r, d })));
    return `  {
${all.map((n) => `    let query${n} = ${value(n)};`).join('\n')}
    workgroupBarrier();
${all.map((n) => `    store_rows(${at(n).row} * ${queryPitch}u + ${at(n).eight} * 8u, query${n});`).join('\n')}
  }
  workgroupBarrier();
${places.map(({ r, d }) => `  let q${r}_${from / 16 + d} = ${load('Left', 'row', 'rows', `(down + ${16 * r}u) * ${queryPitch}u + ${16 * d}u`, queryPitch)};`).join('\n')}`;
  }

  /** Weights of a query in four lanes: of every 32 keys eight neighbours each. */
  function softmax(r: number): string {
    const quads = upTo(keys / 16).map((j) => ({ j, at: 32 * (j >> 1) + 4 * (j & 1) }));
    const tree = (join: (a: string, b: string) => string): string =>
      quads.map(({ j }) => `s${j}`).reduce((a, b) => join(a, b));
    return `    {
      let line = query${r} * ${scorePitch}u + member;
      let at_query = position + query${r};
${quads.map(({ j, at }) => `      var s${j} = scores[(line + ${at}u) / 4u] * ${float(scale * Math.LOG2E)};`).join('\n')}
      if (${source.masked}) {
        let here = vec4u(0u, 1u, 2u, 3u) + ${source.first('b')} + member;
${quads.map(({ j, at }) => `        s${j} = select(vec4f(-1e30), s${j}, ${source.seen(`(here + ${at}u)`, 'at_query')});`).join('\n')}
      }
      let highest = ${tree((a, b) => `max(${a}, ${b})`)};
      var block_top = max(max(highest.x, highest.y), max(highest.z, highest.w));
      block_top = max(block_top, subgroupShuffleXor(block_top, 1u));
      block_top = max(block_top, subgroupShuffleXor(block_top, 2u));
      peak${r} = max(peak${r}, block_top);
      let moves = block_top > top${r} + 8.0;
      let next = select(top${r}, block_top, moves);
      let factor = exp2(max(top${r} - next, -100.0));
      top${r} = next;
${quads.map(({ j }) => `      s${j} = exp2(s${j} - top${r});`).join('\n')}
      let at = query${r} * ${weightPitch}u + member;
${upTo(keys / 32)
  .map((n) => `      store_weights(at + ${32 * n}u, eight_of(s${2 * n}, s${2 * n + 1}));`)
  .join('\n')}
      let sum = ${tree((a, b) => `${a} + ${b}`)};
      total${r} = total${r} * factor + (sum.x + sum.y) + (sum.z + sum.w);
      if (moves && b > 0u) { moved[subgroup] = 1u; }
      if (member == 0u) { shrink[query${r}] = factor; }
    }`;
  }
}

function through(name: string, change: string): string {
  return `      ${storeSums('scores', 'mine', name, 16)}
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
