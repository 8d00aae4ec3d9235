import { ringFunction, type Window } from './cache.js';
import { float, type Kernel, type KernelParts, kernel, tileTokens } from './kernel.js';
import { halves, load, matrixTypes, multiply, pitchOf, upTo } from './matrices.js';
import type { AttentionShape } from './softmax-attention.js';

const size = 128;
const keysPerBlock = 64;
// Distances of rows in workgroup memory that spread the lanes of a quarter of a subgroup, or eight rows, over all banks.
const scorePitch = keysPerBlock + 8;
const weightPitch = pitchOf(keysPerBlock);

/** Head widths whose tiles fit the workgroup memory. */
export function tileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim <= 128;
}

/** Where the keys and values of a tile come from, and what becomes of the result. */
interface Source {
  readonly name: string;
  readonly buffers: KernelParts['buffers'];
  readonly module: string;
  /** Declares `blocks`, the number of blocks of 64 keys. */
  readonly blocks: string;
  /** First key of block b. */
  readonly first: (b: string) => string;
  /** A word of a key or value, by key. */
  readonly word: (of: 'keys' | 'values', key: string, word: string) => string;
  /** Condition that some key of block b is hidden from some query, and which of two keys are seen at a position. */
  readonly masked: string;
  readonly seen: (keys: string, position: string) => string;
  /** Sets shrink[query], the factor of the sums of a query, from top, peak (the true maximum) and total. */
  readonly finish: (r: number) => string;
  /** Two numbers added to two of the result. */
  readonly added: (r: string, c: string) => string;
}

/**
 * Attention of long rows in float16 by subgroup matrices: 64 queries of one head a workgroup over blocks of 64 keys. A
 * subgroup of 32 lanes has 32 queries and 32 keys of the scores, and 32 queries and half of the columns of the result (16 and
 * all, where the columns have no halves); for the softmax it has 16 queries, four lanes each. q [tokens, heads*headDim] is
 * turned already; cache [slots, kvHeads, tokens, headDim]. The running maximum moves only when it is passed by more than 2^8,
 * so that the sums seldom leave their registers to be scaled.
 */
export function tileAttention(shape: AttentionShape): Kernel {
  const { kvHeads, headDim } = shape;
  return tiles(shape, {
    name: 'tile-attention',
    buffers: { keys: ['u32', 'read'], values: ['u32', 'read'], info: ['u32', 'read'] },
    module: '',
    blocks: `  let blocks = (visible + ${keysPerBlock - 1}u) / ${keysPerBlock}u;
  let cache = (row.x * ${kvHeads}u + kv) * info[0];`,
    first: (b) => `(${b}) * ${keysPerBlock}u`,
    word: (of, key, word) => `${of}[(cache + ${key}) * ${headDim / 2}u + ${word}]`,
    masked: `b * ${keysPerBlock}u + ${keysPerBlock}u > position + 1u`,
    seen: (keys, at) => `${keys} <= vec2u(${at})`,
    finish: (r) => `  shrink[query${r}] = 1.0 / total${r};`,
    added: () => 'vec2f()',
  });
}

/**
 * As windowAttention of softmax-attention.ts, for long rows: of a tile the window is two or three blocks, the sinks are one
 * more. With `join` also joined with the sums of a dual state.
 */
export function tileWindow(shape: AttentionShape, window: Window, join: boolean): Kernel {
  const { heads, kvHeads, headDim } = shape;
  const entries = window.sinks + window.size;
  const words = headDim / 2;
  return tiles(shape, {
    name: join ? 'tile-window-join' : 'tile-window',
    buffers: {
      k: ['u32', 'read'],
      v: ['u32', 'read'],
      keys: ['u32', 'read'],
      values: ['u32', 'read'],
      ...(join ? { sums: ['f32', 'read'] as const, log_weight: ['f32', 'read'] as const } : {}),
    },
    module: `${ringFunction(window)}
${(['keys', 'values'] as const)
  .map(
    (of) => `// In the ring or among the tokens of this step.
fn ${of}_at(j: u32, row: vec4u, kv: u32, word: u32) -> u32 {
  if (j < row.y) { return ${of}[((row.x * ${kvHeads}u + kv) * ${entries}u + ring_index(j)) * ${words}u + word]; }
  return ${of[0]}[((row.z + j - row.y) * ${kvHeads}u + kv) * ${words}u + word];
}`,
  )
  .join('\n')}
${join ? `var<workgroup> shares: array<f32, ${tileTokens}>;` : ''}`,
    blocks: `  let low = u32(max(i32(position) - ${window.size - 1}, 0));
  let sinks = min(${window.sinks}u, low);
  let before = (sinks + ${keysPerBlock - 1}u) / ${keysPerBlock}u; // blocks of sinks
  let blocks = before + (visible - low + ${keysPerBlock - 1}u) / ${keysPerBlock}u;
${join ? '  let share = exp(log_weight[head]);' : ''}`,
    first: (b) => `select(low + (${b} - before) * ${keysPerBlock}u, (${b}) * ${keysPerBlock}u, ${b} < before)`,
    word: (of, key, word) => `${of}_at(${key}, row, kv, ${word})`,
    masked: 'true',
    seen: (keys, at) =>
      `(${keys} < vec2u(select(visible, sinks, b < before))) & (${keys} <= vec2u(${at})) & ((${keys} + ${window.size}u > vec2u(${at})) | (${keys} < vec2u(${window.sinks}u)))`,
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
      return join ? `vec2f(sums[${at}], sums[${at} + 1u]) * shares[${r}]` : 'vec2f()';
    },
  });
}

function tiles({ heads, kvHeads, headDim, scale }: AttentionShape, source: Source): Kernel {
  const words = headDim / 2;
  const pitch = pitchOf(headDim);
  const [two, four, deep] = [upTo(2), upTo(4), upTo(headDim / 16)];
  const halved = headDim % 32 === 0;
  const [tall, wide] = halved ? [two, upTo(headDim / 32)] : [[0], deep];
  const base = halved ? 'down' : 'subgroup * 16u';
  const columns = halved ? `side * ${headDim / 2}u` : '0u';
  const loads = upTo((keysPerBlock * words) / size);
  const line = (n: number) => `((lane + ${n * size}u) / ${words}u)`;
  const word = (n: number) => `(lane + ${n * size}u) % ${words}u`;
  const fetch = (name: string, read: (row: string, word: string) => string, declare = 'let ') =>
    loads.map((n) => `    ${declare}${name}${n} = ${read(line(n), word(n))};`).join('\n');
  const put = (name: string) =>
    loads.map((n) => `    store_rows(${line(n)} * ${pitch}u + ${word(n)} * 2u, ${name}${n});`).join('\n');
  const kept = (of: 'keys' | 'values', b: string) => (row: string, at: string) =>
    source.word(of, `min(${source.first(b)} + ${row}, visible - 1u)`, at);
  const query = (row: string, at: string) =>
    `q[((first + min(${row}, tile.z - 1u)) * ${heads}u + head) * ${words}u + ${at}]`;
  const out = tall.flatMap((r) => wide.map((c) => ({ r, c, name: `o${r}_${c}` })));
  return kernel({
    name: source.name,
    buffers: { q: ['u32', 'read'], ...source.buffers, y: ['vec4u', 'write'] },
    matrices: true,
    module: `${matrixTypes}
${halves('rows', keysPerBlock * pitch)} // queries, then keys, then values
var<workgroup> scores: array<f32, ${tileTokens * scorePitch}>; // and tiles of the result
${halves('weights', tileTokens * weightPitch)}
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
  {
${fetch('query', query)}
${put('query')}
  }
  workgroupBarrier();
${two.flatMap((r) => deep.map((d) => `  let q${r}_${d} = ${load('Left', 'row', 'rows', `(down + ${16 * r}u) * ${pitch}u + ${16 * d}u`, pitch)};`)).join('\n')}
${out.map(({ name }) => `  var ${name} = Sum();`).join('\n')}
  let mine = subgroup * 256u;
  let member = own % 4u * 2u;
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
${two.flatMap((r) => two.map((c) => `      var s${r}${c} = Sum();`)).join('\n')}
${deep
  .map(
    (
      d,
    ) => `${two.map((c) => `      let k${d}_${c} = ${load('Right', 'col', 'rows', `(side * 32u + ${16 * c}u) * ${pitch}u + ${16 * d}u`, pitch)};`).join('\n')}
${two.flatMap((r) => two.map((c) => `      ${multiply(`s${r}${c}`, `q${r}_${d}`, `k${d}_${c}`)}`)).join('\n')}`,
  )
  .join('\n')}
${two.flatMap((r) => two.map((c) => `      subgroupMatrixStore<row_major>(&scores, (down + ${16 * r}u) * ${scorePitch}u + side * 32u + ${16 * c}u, s${r}${c}, ${scorePitch}u);`)).join('\n')}
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
      `      for (var e = own; e < 256u; e += 32u) { scores[mine + e] *= shrink[${base} + ${16 * r}u + e / 16u]; }
      workgroupBarrier();
      ${name} = ${load('Sum', 'row', 'scores', 'mine', 16)};`,
    ),
  )
  .join('\n')}
    }
    // The last time they are fetched in vain.
${fetch('key', kept('keys', '(b + 1u)'), '')}
${four
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
        let at = mine + own * 8u;
        if (r < tile.z) {
          let c = ${columns} + ${16 * c}u + own % 2u * 8u;
          y[(((first + r) * ${heads}u + head) * ${headDim}u + c) / 8u] = vec4u(${[0, 2, 4, 6].map((e) => `pack2x16float(vec2f(scores[at + ${e}u], scores[at + ${e + 1}u]) * shrink[r] + ${source.added('r', `c + ${e}u`)})`).join(', ')});
        }
      }`,
    ),
  )
  .join('\n')}`,
  });

  /** Weights of a query in four lanes, two neighbouring keys of every eight each. */
  function softmax(r: number): string {
    const eight = upTo(8);
    const highest = eight.reduce((a, j) => (a ? `max(${a}, s${j})` : `s${j}`), '');
    return `    {
      let line = query${r} * ${scorePitch}u + member;
      let at_query = position + query${r};
${eight.map((j) => `      var s${j} = vec2f(scores[line + ${8 * j}u], scores[line + ${8 * j + 1}u]) * ${float(scale * Math.LOG2E)};`).join('\n')}
      if (${source.masked}) {
        let here = vec2u(0u, 1u) + ${source.first('b')} + member;
${eight.map((j) => `        s${j} = select(vec2f(-1e30), s${j}, ${source.seen(`(here + ${8 * j}u)`, 'at_query')});`).join('\n')}
      }
      let highest = ${highest};
      var block_top = max(highest.x, highest.y);
      block_top = max(block_top, subgroupShuffleXor(block_top, 1u));
      block_top = max(block_top, subgroupShuffleXor(block_top, 2u));
      peak${r} = max(peak${r}, block_top);
      let moves = block_top > top${r} + 8.0;
      let next = select(top${r}, block_top, moves);
      let factor = exp2(max(top${r} - next, -100.0));
      top${r} = next;
      var sum = vec2f();
      let at = query${r} * ${weightPitch}u + member;
${eight.map((j) => `      s${j} = exp2(s${j} - top${r});\n      sum += s${j};\n      store_weights(at + ${8 * j}u, pack2x16float(s${j}));`).join('\n')}
      total${r} = total${r} * factor + sum.x + sum.y;
      if (moves && b > 0u) { moved[subgroup] = 1u; }
      if (member == 0u) { shrink[query${r}] = factor; }
    }`;
  }
}

function through(name: string, change: string): string {
  return `      subgroupMatrixStore<row_major>(&scores, mine, ${name}, 16u);
      workgroupBarrier();
${change}
      workgroupBarrier();`;
}
