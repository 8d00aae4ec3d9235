import { columnsOf, type DualShape, gateColumns, mixFunction } from './dual-linear-attention.js';
import { chunkTokens, float, type Kernel, kernel, leastChunk, tileTokens } from './kernel.js';
import { halves, load, matrixTypes, multiply, pitchOf, stageSize as size, stage, upTo } from './matrices.js';

// The dual layer of long rows by subgroup matrices in float16 (Yang et al. 2023, arXiv 2312.06635, section 4). A chunk is 256
// tokens or more. With L the sum of log decays from the start of the chunk:
//   U_i = sum_s e^(L_iC - L_is) phi(k_s) [v_s, 1]^T                                        chunkStates, all chunks at once
//   S_i of every chunk from the one before: S_i <- e^(L_iC) S_i + U_i                      scanChunks, all elements at once
//   o_t = sum_i gamma_i e^(L_it) phi(q_t)^T S_i + sum_(s <= t) A_ts [v_s, 1]               chunkOutputs, all tiles at once
//   A_ts = sum_i gamma_i e^(L_it - L_is) phi(q_t).phi(k_s)
// With scalar gates the states share the product of A. With vector gates the decays go into its factors, from the first token
// of the tile of queries on, so that no exponent is positive; A inside a tile comes from dual-chunks.ts.

/** Whether the kernels can be used: whole matrices for every subgroup. */
export function chunkable({ form, width }: DualShape): boolean {
  return (width / partsOf(width)) % 64 === 0 && form.headDim % 16 === 0 && form.headDim <= 128;
}

/** Channels are taken in parts of at most 128. */
function partsOf(width: number): number {
  return Math.ceil(width / 128);
}

/** Columns of a state in `chunks`: whole matrices, of which the last begins with the normaliser. */
function paddedColumns({ form }: DualShape): number {
  return form.headDim + (form.normaliser ? 16 : 0);
}

/** Width of chunks [chunks, states, kvHeads, width, columns padded to 16]. */
export function chunkWidth(shape: DualShape): number {
  return shape.form.states * shape.form.kvHeads * shape.width * paddedColumns(shape);
}

/** Workgroups of chunkStates for one head and chunk. */
export function statesGroups({ form, width }: DualShape): number {
  return form.states * partsOf(width);
}

/** WGSL of the gate column of state i and a channel. */
function gateAt({ form }: DualShape, i: string, c: string): string {
  const { kvHeads, headDim, gate } = form;
  return gate === 'vector' ? `((${i}) * ${kvHeads}u + kv) * ${headDim}u + ${c}` : `(${i}) * ${kvHeads}u + kv`;
}

/** Log decays of two neighbouring channels (one number with scalar gates). */
function decayPair(shape: DualShape, item: string, i: string, c: string): string {
  const at = `(${item}) * ${gateColumns(shape.form)}u + ${gateAt(shape, i, c)}`;
  return shape.form.gate === 'vector' ? `decay[(${at}) / 2u]` : `decay[${at}]`;
}

/** Values of 64 tokens and the ones of the normaliser; zeros from `count` on. */
function stageValues({ form }: DualShape, to: string, pitch: number, first: string, count: string): string {
  const { kvHeads, headDim, normaliser } = form;
  const words = headDim / 2;
  const value = (line: string, word: string) =>
    `select(0u, v[((${first} + min(${line}, ${count} - 1u)) * ${kvHeads}u + kv) * ${words}u + ${word}], ${line} < ${count})`;
  const ones = `
    for (var e = lane; e < ${8 * tileTokens}u; e += ${size}u) {
      store_${to}(e / 8u * ${pitch}u + ${headDim}u + e % 8u * 2u, select(0u, 0x3c00u, e % 8u == 0u));
    }`;
  return stage(to, words, pitch, value) + (normaliser ? ones : '');
}

/** chunks = U: one workgroup a chunk, kv head, state and part of its channels. */
export function chunkStates(shape: DualShape): Kernel {
  const { form, width } = shape;
  const { kvHeads, states } = form;
  const parts = partsOf(width);
  const channels = width / parts;
  const columns = paddedColumns(shape);
  const [pitch, valuePitch] = [pitchOf(channels), pitchOf(columns)];
  const [down, across] = [upTo(channels / 64), upTo(columns / 16)];
  const keys = (line: string, word: string) => {
    const item = `(first + min(${line}, count - 1u))`;
    const c = `part * ${channels}u + ${word} * 2u`;
    const phi = `phi_k[((${item} * ${kvHeads}u + kv) * ${width}u + part * ${channels}u) / 2u + ${word}]`;
    return `unpack2x16float(select(0u, ${phi}, ${line} < count)) * exp(${decayPair(shape, 'end', 'state', c)} - ${decayPair(shape, item, 'state', c)})`;
  };
  return kernel({
    name: 'chunk-states',
    buffers: {
      phi_k: ['u32', 'read'],
      v: ['u32', 'read'],
      decay: [form.gate === 'vector' ? 'vec2f' : 'f32', 'read'],
      chunks: ['f32', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}\n${halves('rows', tileTokens * pitch)}\n${halves('columns', tileTokens * valuePitch)}`,
    size,
    main: `  let tile = tile_at(group.x);
  if (tile.y % ${chunkTokens} != 0u) { return; }
  let row = row_at(tile.x);
  let kv = group.y;
  let state = group.z / ${parts}u;
  let part = group.z % ${parts}u;
  let tokens = min(${chunkTokens}, row.w - tile.y);
  let end = row.z + tile.y + tokens - 1u;
  let own = lane / 32u * ${channels / 4}u; // channels of a subgroup
${down.flatMap((r) => across.map((c) => `  var u${r}_${c} = Sum();`)).join('\n')}
  for (var t = 0u; t < tokens; t += ${tileTokens}u) {
    let first = row.z + tile.y + t;
    let count = min(${tileTokens}u, tokens - t);
    workgroupBarrier();
${stage('rows', channels / 2, pitch, keys, 'vec2f')}
${stageValues(shape, 'columns', valuePitch, 'first', 'count')}
    workgroupBarrier();
${upTo(4)
  .map(
    (k) => `    {
${down.map((r) => `      let k${r} = ${load('Left', 'col', 'rows', `${16 * k * pitch}u + own + ${16 * r}u`, pitch)};`).join('\n')}
${across
  .map(
    (c) => `      let v${c} = ${load('Right', 'row', 'columns', `${16 * k * valuePitch + 16 * c}u`, valuePitch)};
${down.map((r) => `      ${multiply(`u${r}_${c}`, `k${r}`, `v${c}`)}`).join('\n')}`,
  )
  .join('\n')}
    }`,
  )
  .join('\n')}
  }
  let out = (((tile.w * ${states}u + state) * ${kvHeads}u + kv) * ${width}u + part * ${channels}u + own) * ${columns}u;
${down.flatMap((r) => across.map((c) => `  subgroupMatrixStore<row_major>(&chunks, out + ${16 * r * columns + 16 * c}u, u${r}_${c}, ${columns}u);`)).join('\n')}`,
  });
}

const scanSize = 256;

/** Workgroups of scanChunks for the elements of a state of one head. */
export function scanGroups(shape: DualShape): number {
  return Math.ceil((shape.width * paddedColumns(shape)) / scanSize);
}

/** U of every chunk becomes S at its start (stays U in a replay, which begins at zero); the state moves to the end of the row. */
export function scanChunks(shape: DualShape, replay: boolean): Kernel {
  const { form, width } = shape;
  const { kvHeads, states } = form;
  const padded = paddedColumns(shape);
  const columns = columnsOf(form);
  const eight = upTo(8);
  return kernel({
    name: replay ? 'scan-chunks-replay' : 'scan-chunks',
    buffers: { decay: ['f32', 'read'], chunks: ['f32', replay ? 'read' : 'write'], states: ['f32', 'write'] },
    size: scanSize,
    main: `  let tile = tile_at(group.x);
  if (tile.y != 0u) { return; }
  let row = row_at(tile.x);
  let kv = group.y % ${kvHeads}u;
  let e = group.z * ${scanSize}u + lane;
  if (e >= ${width * padded}u) { return; }
  let c = e / ${padded}u;
  let inside = e % ${padded}u < ${columns}u;
  let own = ((row.x * ${states * kvHeads}u + group.y) * ${width}u + c) * ${columns}u + e % ${padded}u;
  var s = 0.0;
${replay ? '' : '  if (inside) { s = states[own]; }'}
  let count = (row.w + ${chunkTokens} - 1u) / ${chunkTokens};
  let stride = ${chunkWidth(shape)}u;
  let base = tile.w * stride + group.y * ${width * padded}u + e;
  // Eight loads before their stores: the compiler may not reorder them.
  for (var j = 0u; j < count; j += 8u) {
${eight
  .map(
    (n) => `    let j${n} = min(j + ${n}u, count - 1u);
    let u${n} = chunks[base + j${n} * stride];
    let d${n} = exp(decay[(row.z + min((j${n} + 1u) * ${chunkTokens}, row.w) - 1u) * ${gateColumns(form)}u + ${gateAt(shape, `group.y / ${kvHeads}u`, 'c')}]);`,
  )
  .join('\n')}
${eight
  .map(
    (n) => `    if (j + ${n}u < count) {
${replay ? '' : `      chunks[base + j${n} * stride] = s;\n`}      s = s * d${n} + u${n};
    }`,
  )
  .join('\n')}
  }
  if (inside) { states[own] = s; }`,
  });
}

// As in tile-attention.ts.
const scorePitch = tileTokens + 8;
const weightPitch = pitchOf(tileTokens);

/**
 * One workgroup a tile and head, 16 queries and all columns a subgroup. With `scale` it writes y [tokens, heads*headDim] in
 * float16 itself, otherwise sums [tokens, heads, columns]. With vector gates A inside the tile is read from
 * inner [tokens, heads, 64].
 */
export function chunkOutputs(shape: DualShape, mixPerHead: boolean, scale?: number): Kernel {
  const { heads, form, width } = shape;
  const { kvHeads, states, gate } = form;
  const vector = gate === 'vector';
  const padded = paddedColumns(shape);
  const pitch = pitchOf(Math.max(width / partsOf(width), padded));
  const [is, across] = [upTo(states), upTo(padded / 16)];
  const product = withinChunk(shape, pitch);
  return kernel({
    name: 'chunk-outputs',
    buffers: {
      phi_q: ['u32', 'read'],
      phi_k: ['u32', 'read'],
      v: ['u32', 'read'],
      decay: [vector ? 'vec2f' : 'f32', 'read'],
      mix_logits: ['f32', 'read'],
      chunks: ['vec2f', 'read'],
      ...(vector ? { inner: ['f32', 'read'] as const } : {}),
      ...(scale === undefined ? { sums: ['f32', 'write'] as const } : { y: ['vec4u', 'write'] as const }),
    },
    matrices: true,
    module: `${matrixTypes}
${mixFunction(states, mixPerHead)}
${halves('rows', tileTokens * pitch)} // queries, keys, values, states
var<workgroup> scores: array<f32, ${tileTokens * scorePitch}>; // A, and tiles of the result
${halves('weights', tileTokens * weightPitch)} // A
${vector ? '' : `var<workgroup> keyed: array<f32, ${states * tileTokens}>; // L of the keys, [states, keys]`}`,
    size,
    main: `  let tile = tile_at(group.x);
  let row = row_at(tile.x);
  let first = row.z + tile.y;
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let member = own % 4u * 2u;
${is.map((i) => `  let mixed${i} = gamma(head, ${i}u);`).join('\n')}
${across.map((c) => `  var o${c} = Sum();`).join('\n')}
${[0, 1].map((r) => `  let query${r} = subgroup * 16u + ${8 * r}u + own / 4u;`).join('\n')}
${product.queries}
  for (var t = tile.y / ${chunkTokens} * ${chunkTokens}; t <= tile.y; t += ${tileTokens}u) {
    let key_first = row.z + t;
    let key_count = min(${tileTokens}u, row.w - t);
    let diagonal = t == tile.y;
${vector ? `    if (!diagonal) {\n${product.scores}\n    }` : product.scores}
    workgroupBarrier();
${stageValues(shape, 'rows', pitch, 'key_first', 'key_count')}
${vector ? '' : is.map((i) => `    if (lane < ${tileTokens}u) { keyed[${i * tileTokens}u + lane] = ${decayPair(shape, 'key_first + min(lane, key_count - 1u)', `${i}`, '0u')}; }`).join('\n')}
    workgroupBarrier();
${[0, 1].map((r) => weigh(shape, r)).join('\n')}
    workgroupBarrier();
${upTo(4)
  .map(
    (k) => `    {
      let a = ${load('Left', 'row', 'weights', `subgroup * ${16 * weightPitch}u + ${16 * k}u`, weightPitch)};
${across.map((c) => `      ${multiply(`o${c}`, 'a', load('Right', 'row', 'rows', `${16 * k * pitch + 16 * c}u`, pitch))}`).join('\n')}
    }`,
  )
  .join('\n')}
  }
  // States grow with their tokens, beyond what a half can hold: the queries take a power of two from them.
  let grown = exp2(floor(log2(1.0 + f32((row.y + tile.y) / ${leastChunk}u))));
${beforeChunk(shape, pitch)}
  let mine = subgroup * 256u;
${across
  .map(
    (c) => `  workgroupBarrier();
  subgroupMatrixStore<row_major>(&scores, mine, o${c}, 16u);
  workgroupBarrier();
${scale === undefined ? writeSums(shape, c) : writeHalves(shape, c, scale)}`,
  )
  .join('\n')}`,
  });
}

const queryAt =
  ({ heads, width }: DualShape, p: number) =>
  (line: string, word: string) =>
    `phi_q[((first + min(${line}, tile.z - 1u)) * ${heads}u + head) * ${width / 2}u + ${(p * width) / partsOf(width) / 2}u + ${word}]`;

/** Left matrices of 16 staged queries of a subgroup. */
function fragments(name: string, channels: number, pitch: number): string {
  return upTo(channels / 16)
    .map((d) => `  let ${name}_${d} = ${load('Left', 'row', 'rows', `subgroup * ${16 * pitch}u + ${16 * d}u`, pitch)};`)
    .join('\n');
}

/** Queries as matrices, once, and their scores against a tile of keys. */
function withinChunk(shape: DualShape, pitch: number): { readonly queries: string; readonly scores: string } {
  const { form, width } = shape;
  const { kvHeads, states, gate } = form;
  const vector = gate === 'vector';
  const parts = partsOf(width);
  const channels = width / parts;
  const four = upTo(4);
  const factors = (vector ? upTo(states) : [0]).flatMap((i) => upTo(parts).map((p) => ({ i, p })));
  const c = (p: number, word: string) => `${p * channels}u + ${word} * 2u`;
  const queries = factors.map(({ i, p }) => {
    const own = queryAt(shape, p);
    const decayed = (line: string, word: string) =>
      `unpack2x16float(${own(line, word)}) * mixed${i} * exp(${decayPair(shape, `first + min(${line}, tile.z - 1u)`, `${i}`, c(p, word))} - ${decayPair(shape, 'first', `${i}`, c(p, word))})`;
    return `  workgroupBarrier();
${vector ? stage('rows', channels / 2, pitch, decayed, 'vec2f') : stage('rows', channels / 2, pitch, own)}
  workgroupBarrier();
${fragments(`q${i}_${p}`, channels, pitch)}`;
  });
  const scores = factors.map(({ i, p }) => {
    const item = (line: string) => `(key_first + min(${line}, key_count - 1u))`;
    const own = (line: string, word: string) =>
      `phi_k[(${item(line)} * ${kvHeads}u + kv) * ${width / 2}u + ${(p * channels) / 2}u + ${word}]`;
    const decayed = (line: string, word: string) =>
      `unpack2x16float(${own(line, word)}) * exp(${decayPair(shape, 'first', `${i}`, c(p, word))} - ${decayPair(shape, item(line), `${i}`, c(p, word))})`;
    return `    workgroupBarrier();
${vector ? stage('rows', channels / 2, pitch, decayed, 'vec2f') : stage('rows', channels / 2, pitch, own)}
    workgroupBarrier();
${upTo(channels / 16)
  .flatMap((d) =>
    four.map(
      (k) =>
        `    ${multiply(`s${k}`, `q${i}_${p}_${d}`, load('Right', 'col', 'rows', `${16 * k * pitch + 16 * d}u`, pitch))}`,
    ),
  )
  .join('\n')}`;
  });
  return {
    queries: queries.join('\n'),
    scores: `${four.map((k) => `    var s${k} = Sum();`).join('\n')}
${scores.join('\n')}
${four.map((k) => `    subgroupMatrixStore<row_major>(&scores, subgroup * ${16 * scorePitch}u + ${16 * k}u, s${k}, ${scorePitch}u);`).join('\n')}`,
  };
}

/** A of a query in four lanes, two neighbouring keys of every eight each, decayed and masked. */
function weigh(shape: DualShape, r: number): string {
  const { form, heads } = shape;
  const is = upTo(form.states);
  const eight = upTo(8);
  const key = (j: number) => `member + ${8 * j}u`;
  const score = `query${r} * ${scorePitch}u`;
  const decayed = (j: number) =>
    is
      .map((i) => {
        const keyed = (n: number) => `keyed[${i * tileTokens}u + ${key(j)} + ${n}u]`;
        return `mixed${i} * exp(min(own${i} - vec2f(${keyed(0)}, ${keyed(1)}), vec2f()))`;
      })
      .join(' + ');
  const scores = eight.map(
    (j) => `      var a${j} = vec2f(scores[${score} + ${key(j)}], scores[${score} + ${key(j)} + 1u]);`,
  );
  const scalar = `${is.map((i) => `      let own${i} = ${decayPair(shape, `first + min(query${r}, tile.z - 1u)`, `${i}`, '0u')};`).join('\n')}
${eight.map((j) => `      a${j} *= ${decayed(j)};`).join('\n')}
      if (diagonal) {
${eight.map((j) => `        a${j} = select(vec2f(), a${j}, vec2u(0u, 1u) + ${key(j)} <= vec2u(query${r}));`).join('\n')}
      }`;
  const inner = `      if (diagonal) {
        let line = ((first + min(query${r}, tile.z - 1u)) * ${heads}u + head) * ${tileTokens}u;
${eight.map((j) => `        a${j} = vec2f(inner[line + ${key(j)}], inner[line + ${key(j)} + 1u]);`).join('\n')}
      }`;
  return `    {
${scores.join('\n')}
${form.gate === 'vector' ? inner : scalar}
${eight.map((j) => `      store_weights(query${r} * ${weightPitch}u + ${key(j)}, pack2x16float(a${j}));`).join('\n')}
    }`;
}

/** What the tokens before the chunk give, out of its states. */
function beforeChunk(shape: DualShape, pitch: number): string {
  const { form, width } = shape;
  const { kvHeads, states } = form;
  const parts = partsOf(width);
  const channels = width / parts;
  const padded = paddedColumns(shape);
  const across = upTo(padded / 16);
  const each = upTo(states).flatMap((i) => upTo(parts).map((p) => ({ i, p })));
  return each
    .map(({ i, p }) => {
      const decayed = (line: string, word: string) =>
        `unpack2x16float(${queryAt(shape, p)(line, word)}) * (mixed${i} * grown) * exp(${decayPair(shape, `first + min(${line}, tile.z - 1u)`, `${i}`, `${p * channels}u + ${word} * 2u`)})`;
      const rows = upTo(channels / 64).map((part) => {
        const state = (line: string, word: string) =>
          `chunks[(((tile.w * ${states}u + ${i}u) * ${kvHeads}u + kv) * ${width}u + ${p * channels + part * 64}u + ${line}) * ${padded / 2}u + ${word}] / grown`;
        return `  workgroupBarrier();
${stage('rows', padded / 2, pitch, state, 'vec2f')}
  workgroupBarrier();
${upTo(4)
  .flatMap((k) =>
    across.map(
      (c) =>
        `  ${multiply(`o${c}`, `h_${part * 4 + k}`, load('Right', 'row', 'rows', `${16 * k * pitch + 16 * c}u`, pitch))}`,
    ),
  )
  .join('\n')}`;
      });
      return `  {
  workgroupBarrier();
${stage('rows', channels / 2, pitch, decayed, 'vec2f')}
  workgroupBarrier();
${fragments('h', channels, pitch)}
${rows.join('\n')}
  }`;
    })
    .join('\n');
}

function writeSums({ heads, form }: DualShape, c: number): string {
  const columns = columnsOf(form);
  return `  for (var e = own; e < 256u; e += 32u) {
    let r = subgroup * 16u + e / 16u;
    let at = ${16 * c}u + e % 16u;
    if (r < tile.z && at < ${columns}u) { sums[((first + r) * ${heads}u + head) * ${columns}u + at] = scores[mine + e]; }
  }`;
}

function writeHalves({ heads, form }: DualShape, c: number, scale: number): string {
  const pair = (e: number) =>
    `pack2x16float(vec2f(scores[mine + own * 8u + ${e}u], scores[mine + own * 8u + ${e + 1}u]) * ${float(scale)})`;
  return `  if (subgroup * 16u + own / 2u < tile.z) {
    let at = ((first + subgroup * 16u + own / 2u) * ${heads}u + head) * ${form.headDim}u + ${16 * c}u + own % 2u * 8u;
    y[at / 8u] = vec4u(${[0, 2, 4, 6].map(pair).join(', ')});
  }`;
}
