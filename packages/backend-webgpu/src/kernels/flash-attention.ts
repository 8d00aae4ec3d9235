import { float, type Kernel, type KernelParts, kernel, tileTokens, upTo } from './kernel.js';
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
} from './matrices.js';
import type { AttentionShape } from './softmax-attention.js';

// FlashAttention (Dao et al., arXiv 2205.14135, 2307.08691) by subgroup matrices, for a tile of queries over blocks of keys that
// tile-attention.ts says where to find: scores and weighted values are products, the weights of a query are made by four lanes.
// Keys and values share one place in workgroup memory; the next ones are under way while those there are multiplied.

const size = 128;
const queryPass = 64; // columns of the queries that are staged at once
/** Keys of a block; of 64 the loads would take the registers of the products. */
export const keysOfBlock = 32;

/** How attention is cut. */
export interface AttentionCut {
  /** Of a subgroup: 32 with half of the keys of a block and half of the columns of the result, or 16 with all. */
  readonly queries: 32 | 16;
}

/** What a device takes that has not been asked. */
export const attentionCut: AttentionCut = { queries: 32 };

/** The cuts among which a device chooses (see tune.ts). */
export const attentionCuts: Readonly<Record<string, AttentionCut>> = {
  '32 queries': attentionCut,
  '16 queries': { queries: 16 },
};

/** Where the keys and values of a tile come from, and what becomes of the result. */
export interface TileSource {
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

/** What of an attention is where. */
interface Plan {
  readonly shape: AttentionShape;
  readonly source: TileSource;
  /** Loads of eight numbers a key has. */
  readonly eights: number;
  /** Numbers from row to row in workgroup memory: of keys and values, of queries, of scores, of weights. */
  readonly pitch: number;
  readonly queryPitch: number;
  readonly scorePitch: number;
  readonly weightPitch: number;
  /** Tiles of 16 of a subgroup: of queries, of the columns of the result; and of a head's width. */
  readonly tall: readonly number[];
  readonly wide: readonly number[];
  readonly deep: readonly number[];
  /** WGSL of the subgroup's first query, its first column of the result, and the first keys of its tiles of a block. */
  readonly base: string;
  readonly columns: string;
  readonly blocks: readonly string[];
  /** Loads of a lane of the keys of a block, and WGSL of the place of each in it. */
  readonly loads: readonly number[];
  readonly place: (n: number) => string;
  /** The tiles of the result. */
  readonly out: readonly { readonly r: number; readonly c: number; readonly name: string }[];
}

function planOf(shape: AttentionShape, source: TileSource, { queries: together }: AttentionCut): Plan {
  const { headDim } = shape;
  const eights = headDim / 8;
  const deep = upTo(headDim / 16);
  const halved = together === 32 && headDim % 32 === 0;
  const [tall, wide] = halved ? [upTo(2), upTo(headDim / 32)] : [[0], deep];
  const all = keysOfBlock * eights;
  const even = all % size === 0; // else the last lanes load what others do
  return {
    shape,
    source,
    eights,
    pitch: pitchOf(headDim),
    queryPitch: pitchOf(Math.min(headDim, queryPass)),
    scorePitch: scorePitchOf(keysOfBlock),
    weightPitch: pitchOf(keysOfBlock),
    tall,
    wide,
    deep,
    base: halved ? 'down' : 'subgroup * 16u',
    columns: halved ? `side * ${headDim / 2}u` : '0u',
    blocks: halved ? ['side * 16u'] : ['0u', '16u'],
    loads: upTo(Math.ceil(all / size)),
    place: (n) => (even ? `(lane + ${n * size}u)` : `min(lane + ${n * size}u, ${all - 1}u)`),
    out: tall.flatMap((r) => wide.map((c) => ({ r, c, name: `o${r}_${c}` }))),
  };
}

const two = upTo(2); // queries whose weights a lane has a share of

/** 64 queries of one head a workgroup. Buffers: q, those of the source, y. */
export function flashAttention(shape: AttentionShape, source: TileSource, cut: AttentionCut): Kernel {
  const { heads, kvHeads, headDim } = shape;
  const plan = planOf(shape, source, cut);
  const { pitch, queryPitch, scorePitch, weightPitch, loads, out } = plan;
  return kernel({
    name: source.name,
    buffers: { q: ['vec4u', 'read'], ...source.buffers, y: ['vec4u', 'write'] },
    matrices: true,
    module: `${matrixTypes}
${halves('rows', Math.max(keysOfBlock * pitch, tileTokens * queryPitch))} // some columns of the queries, then keys, then values
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
  .map((pass) => queries(plan, pass))
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
${fetch(plan, 'keys', '0u')}
  if (lane < 2u) { moved[lane] = 0u; }
  for (var b = 0u; b < blocks; b++) {
${block(plan)}
  }
  workgroupBarrier();
${finish(plan)}`,
  });
}

/** Queries as matrices, staged some columns at a time. */
function queries({ shape, eights, queryPitch, tall, base }: Plan, pass: number): string {
  const { heads, headDim } = shape;
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

/** Loads the keys or values of block b. */
function fetch({ source, eights, loads, place }: Plan, of: 'keys' | 'values', b: string): string {
  return loads
    .map((n) => {
      const key = `min(${source.first(b)} + ${place(n)} / ${eights}u, visible - 1u)`;
      return `    ${of}${n} = ${source.eight(of, key, `${place(n)} % ${eights}u`)};`;
    })
    .join('\n');
}

/** Brings what was loaded to workgroup memory. */
function put({ eights, pitch, loads, place }: Plan, of: 'keys' | 'values'): string {
  return loads
    .map((n) => `    store_rows(${place(n)} / ${eights}u * ${pitch}u + ${place(n)} % ${eights}u * 8u, ${of}${n});`)
    .join('\n');
}

/** What a block of keys adds. */
function block(plan: Plan): string {
  return `    workgroupBarrier();
${put(plan, 'keys')}
    workgroupBarrier();
${fetch(plan, 'values', 'b')}
${scores(plan)}
    workgroupBarrier();
    // Values beyond the last token are the last one's, with a weight of 0.
${put(plan, 'values')}
    if (lane == 0u) { moved[(b + 1u) % 2u] = 0u; }
${two.map((r) => softmax(plan, r)).join('\n')}
    let rescale = workgroupUniformLoad(&moved[b % 2u]); // with barriers
    // The last time they are fetched in vain: a branch would wait for its loads.
${fetch(plan, 'keys', '(b + 1u)')}
    if (rescale > 0u) {
${rescale(plan)}
    }
${weighted(plan)}`;
}

/** Products of queries and keys. */
function scores({ tall, deep, blocks, base, pitch, scorePitch }: Plan): string {
  const products = deep.flatMap((d) =>
    blocks.map((first, c) => {
      const keys = `      let k${c}_${d} = ${load('Right', 'col', 'rows', `(${first}) * ${pitch}u + ${16 * d}u`, pitch)};`;
      return [keys, ...tall.map((r) => `      ${multiply(`s${r}_${c}`, `q${r}_${d}`, `k${c}_${d}`)}`)].join('\n');
    }),
  );
  const at = (r: number, first: string) => `(${base} + ${16 * r}u) * ${scorePitch}u + ${first}`;
  return `    {
${tall.flatMap((r) => blocks.map((_, c) => `      var s${r}_${c} = Sum();`)).join('\n')}
${products.join('\n')}
${tall.flatMap((r) => blocks.map((first, c) => `      ${storeSums('scores', at(r, first), `s${r}_${c}`, scorePitch)}`)).join('\n')}
    }`;
}

/** Weights of a query in four lanes of eight keys each. */
function softmax({ shape, source, scorePitch, weightPitch }: Plan, r: number): string {
  const factor = float(shape.scale * Math.LOG2E);
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

/** The result, brought to maxima that moved. */
function rescale({ out, base, scorePitch }: Plan): string {
  return out
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
    .join('\n');
}

/** Products of weights and values. */
function weighted({ tall, wide, base, columns, pitch, weightPitch }: Plan): string {
  const row = (r: number, k: number) => `(${base} + ${16 * r}u) * ${weightPitch}u + ${16 * k}u`;
  return upTo(keysOfBlock / 16)
    .map(
      (k) => `    {
${tall.map((r) => `      let p${r} = ${load('Left', 'row', 'weights', row(r, k), weightPitch)};`).join('\n')}
${wide
  .map(
    (c) => `      let v${c} = ${load('Right', 'row', 'rows', `${16 * k * pitch + 16 * c}u + ${columns}`, pitch)};
${tall.map((r) => `      ${multiply(`o${r}_${c}`, `p${r}`, `v${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`,
    )
    .join('\n');
}

/** Writes the result. */
function finish({ shape, source, out, base, columns, scorePitch }: Plan): string {
  const { heads, headDim } = shape;
  const totals = two.map(
    (r) => `  total${r} += subgroupShuffleXor(total${r}, 1u);
  total${r} += subgroupShuffleXor(total${r}, 2u);
${source.finish(r)}`,
  );
  const tiles = out.map(({ r, c, name }) =>
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
  );
  return [...totals, ...tiles].join('\n');
}

function through(name: string, change: string, pitch: number): string {
  return `      ${storeSums('scores', 'mine', name, pitch)}
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
