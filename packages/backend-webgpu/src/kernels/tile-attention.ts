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
const keys = 32; // of a block; of 64 the loads would take the registers of the products

/** How attention is cut. */
export interface AttentionCut {
  /** Of a subgroup: 32 with half of the keys of a block and half of the columns of the result, or 16 with all. */
  readonly queries: 32 | 16;
}

/** What a device takes that has not been asked. */
const attentionCut: AttentionCut = { queries: 32 };

/** The cuts among which a device chooses (see tune.ts). */
export const attentionCuts: Readonly<Record<string, AttentionCut>> = {
  '32 queries': attentionCut,
  '16 queries': { queries: 16 },
};

/** Head widths whose tiles fit the workgroup memory. */
export function tileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim <= 128;
}

/** Where the keys and values of a tile come from, and what becomes of the result. */
interface Source {
  readonly name: string;
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
 * Attention of long rows in float16 by subgroup matrices: 64 queries of one head a workgroup over blocks of keys. For
 * the softmax a query has four lanes. q [tokens, heads*headDim] is
 * turned already; cache [slots, kvHeads, tokens, headDim]. The running maximum moves only when it is passed by more than 2^8,
 * so that the sums seldom leave their registers to be scaled.
 */
export function tileAttention(shape: AttentionShape, cut: AttentionCut = attentionCut): Kernel {
  const { kvHeads, headDim } = shape;
  const source: Source = {
    name: 'tile-attention',
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
  };
  return tiles(shape, source, cut);
}

/**
 * As windowAttention of softmax-attention.ts, for long rows: of a tile the window is two or three blocks, the sinks are one
 * more. With `join` also joined with the sums of a dual state.
 */
export function tileWindow(
  shape: AttentionShape,
  window: Window,
  join: boolean,
  cut: AttentionCut = attentionCut,
): Kernel {
  const { heads, kvHeads, headDim } = shape;
  const entries = window.sinks + window.size;
  const eights = headDim / 8;
  const source: Source = {
    name: join ? 'tile-window-join' : 'tile-window',
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
  };
  return tiles(shape, source, cut);
}

function tiles(
  { heads, kvHeads, headDim, scale }: AttentionShape,
  source: Source,
  { queries: together }: AttentionCut,
): Kernel {
  const eights = headDim / 8;
  const [pitch, scorePitch, weightPitch] = [pitchOf(headDim), scorePitchOf(keys), pitchOf(keys)];
  const queryPitch = pitchOf(Math.min(headDim, queryPass));
  const [two, deep] = [upTo(2), upTo(headDim / 16)];
  const halved = together === 32 && headDim % 32 === 0;
  const [tall, wide] = halved ? [two, upTo(headDim / 32)] : [[0], deep];
  const base = halved ? 'down' : 'subgroup * 16u';
  const columns = halved ? `side * ${headDim / 2}u` : '0u';
  const blocks = halved ? ['side * 16u'] : ['0u', '16u']; // of 16 keys
  const loads = upTo(Math.ceil((keys * eights) / size));
  const even = (keys * eights) % size === 0; // else the last lanes load what others do
  const place = (n: number) => (even ? `(lane + ${n * size}u)` : `min(lane + ${n * size}u, ${keys * eights - 1}u)`);
  const fetch = (of: 'keys' | 'values', b: string) =>
    loads
      .map((n) => {
        const key = `min(${source.first(b)} + ${place(n)} / ${eights}u, visible - 1u)`;
        return `    ${of}${n} = ${source.eight(of, key, `${place(n)} % ${eights}u`)};`;
      })
      .join('\n');
  const put = (of: 'keys' | 'values') =>
    loads
      .map((n) => `    store_rows(${place(n)} / ${eights}u * ${pitch}u + ${place(n)} % ${eights}u * 8u, ${of}${n});`)
      .join('\n');
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
var<workgroup> moved: array<u32, 2>; // of even and of odd blocks
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
  let mine = subgroup * ${16 * scorePitch}u + 16u;
  let member = own % 4u * 8u;
${two
  .map(
    (r) => `  let query${r} = subgroup * 16u + ${8 * r}u + own / 4u;
  var top${r} = -1e30;
  var peak${r} = -1e30;
  var total${r} = 0.0;`,
  )
  .join('\n')}
${loads.map((n) => `  var keys${n} = vec4u();\n  var values${n} = vec4u();`).join('\n')}
${fetch('keys', '0u')}
  if (lane < 2u) { moved[lane] = 0u; }
  for (var b = 0u; b < blocks; b++) {
    workgroupBarrier();
${put('keys')}
    workgroupBarrier();
${fetch('values', 'b')}
    {
${tall.flatMap((r) => blocks.map((_, c) => `      var s${r}_${c} = Sum();`)).join('\n')}
${deep
  .flatMap((d) =>
    blocks.map(
      (
        block,
        c,
      ) => `      let k${c}_${d} = ${load('Right', 'col', 'rows', `(${block}) * ${pitch}u + ${16 * d}u`, pitch)};
${tall.map((r) => `      ${multiply(`s${r}_${c}`, `q${r}_${d}`, `k${c}_${d}`)}`).join('\n')}`,
    ),
  )
  .join('\n')}
${tall.flatMap((r) => blocks.map((block, c) => `      ${storeSums('scores', `(${base} + ${16 * r}u) * ${scorePitch}u + ${block}`, `s${r}_${c}`, scorePitch)}`)).join('\n')}
    }
    workgroupBarrier();
    // Values beyond the last token are the last one's, with a weight of 0.
${put('values')}
    if (lane == 0u) { moved[(b + 1u) % 2u] = 0u; }
${two.map(softmax).join('\n')}
    let rescale = workgroupUniformLoad(&moved[b % 2u]); // with barriers
    // The last time they are fetched in vain: a branch would wait for its loads.
${fetch('keys', '(b + 1u)')}
    if (rescale > 0u) {
${out
  .map(({ r, name }) =>
    through(
      name,
      `      for (var e = own; e < 64u; e += 32u) {
        let at = (mine + e / 4u * ${scorePitch}u) / 4u + e % 4u;
        scores[at] *= shrink[${base} + ${16 * r}u + e / 4u];
      }
      workgroupBarrier();
      ${name} = ${loadSums('scores', 'mine', scorePitch)};`,
      scorePitch,
    ),
  )
  .join('\n')}
    }
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
        let at = (mine + own / 2u * ${scorePitch}u) / 4u + own % 2u * 2u;
        if (r < tile.z) {
          let c = ${columns} + ${16 * c}u + own % 2u * 8u;
          let low = scores[at] * shrink[r] + ${source.added('r', 'c')};
          let high = scores[at + 1u] * shrink[r] + ${source.added('r', 'c + 4u')};
          y[(((first + r) * ${heads}u + head) * ${headDim}u + c) / 8u] = eight_of(low, high);
        }
      }`,
      scorePitch,
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
    const places = tall.flatMap((r) => upTo(columns / 16).map((d) => ({ r, d })));
    return `  {
${all.map((n) => `    let query${n} = ${value(n)};`).join('\n')}
    workgroupBarrier();
${all.map((n) => `    store_rows(${at(n).row} * ${queryPitch}u + ${at(n).eight} * 8u, query${n});`).join('\n')}
  }
  workgroupBarrier();
${places.map(({ r, d }) => `  let q${r}_${from / 16 + d} = ${load('Left', 'row', 'rows', `(${base} + ${16 * r}u) * ${queryPitch}u + ${16 * d}u`, queryPitch)};`).join('\n')}`;
  }

  /** Weights of a query in four lanes of eight keys each. */
  function softmax(r: number): string {
    const factor = float(scale * Math.LOG2E);
    return `    {
      let line = (query${r} * ${scorePitch}u + member) / 4u;
      let at_query = position + query${r};
      // Scaled before what is hidden gets its number: one that is scaled itself would not cancel in exp2 exactly.
      var lower = scores[line] * ${factor};
      var upper = scores[line + 1u] * ${factor};
      if (${source.masked}) {
        let here = vec4u(0u, 1u, 2u, 3u) + ${source.first('b')} + member;
        lower = select(vec4f(-1e30), lower, ${source.seen('here', 'at_query')});
        upper = select(vec4f(-1e30), upper, ${source.seen('(here + 4u)', 'at_query')});
      }
      let highest = max(lower, upper);
      var block_top = max(max(highest.x, highest.y), max(highest.z, highest.w));
      block_top = max(block_top, subgroupShuffleXor(block_top, 1u));
      block_top = max(block_top, subgroupShuffleXor(block_top, 2u));
      peak${r} = max(peak${r}, block_top);
      let moves = block_top > top${r} + 8.0;
      let next = select(top${r}, block_top, moves);
      let factor = exp2(max(top${r} - next, -100.0));
      top${r} = next;
      lower = exp2(lower - top${r});
      upper = exp2(upper - top${r});
      store_weights(query${r} * ${weightPitch}u + member, eight_of(lower, upper));
      let sum = lower + upper;
      total${r} = total${r} * factor + (sum.x + sum.y) + (sum.z + sum.w);
      if (moves && b > 0u) { moved[b % 2u] = 1u; }
      if (member == 0u) { shrink[query${r}] = factor; }
    }`;
  }
}

function through(name: string, change: string, pitch: number): string {
  return `      ${storeSums('scores', 'mine', name, pitch)}
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
