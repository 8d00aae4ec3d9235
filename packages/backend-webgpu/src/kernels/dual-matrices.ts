import { columnsOf, type DualShape, gateColumns } from './dual-linear-attention.js';
import { chunkTokens, type Kernel, kernel, leastChunk, tileTokens, upTo } from './kernel.js';
import { eightFunctions, halves, load, matrixTypes, multiply, pitchOf, stageSize as size, stage } from './matrices.js';

// The dual layer of long rows by subgroup matrices in float16 (Yang et al. 2023, arXiv 2312.06635, section 4). A chunk is 256
// tokens or more. With L the sum of log decays from the start of the chunk:
//   U_i = sum_s e^(L_iC - L_is) phi(k_s) [v_s, 1]^T                                        chunkStates, all chunks at once
//   S_i of every chunk from the one before: S_i <- e^(L_iC) S_i + U_i                      scanChunks, all elements at once
//   o_t = sum_i gamma_i e^(L_it) phi(q_t)^T S_i + sum_(s <= t) A_ts [v_s, 1]               dual-outputs.ts, all tiles at once
//   A_ts = sum_i gamma_i e^(L_it - L_is) phi(q_t).phi(k_s)
// With scalar gates the states share the product of A. With vector gates the decays go into its factors, from the first token
// of the tile of queries on, so that no exponent is positive; A inside a tile comes from dual-chunks.ts.

/** Whether the kernels can be used: whole matrices for every subgroup. */
export function chunkable({ form, width }: DualShape): boolean {
  return (width / partsOf(width)) % 64 === 0 && form.headDim % 16 === 0 && form.headDim <= 128;
}

/** Channels are taken in parts of at most 128. */
export function partsOf(width: number): number {
  return Math.ceil(width / 128);
}

/** Columns of a state in `chunks`: whole matrices, of which the last begins with the normaliser. */
export function paddedColumns({ form }: DualShape): number {
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

/** WGSL type of decay in kernels that take eight channels at a time. */
export function decayType({ form }: DualShape): 'f32' | 'vec4f' {
  return form.gate === 'vector' ? 'vec4f' : 'f32';
}

/** Log decays of eight channels from c on: two vectors of four, which are one number with scalar gates. */
export function decayEight(shape: DualShape, item: string, i: string, c: string): readonly [low: string, high: string] {
  const at = `(${item}) * ${gateColumns(shape.form)}u + ${gateAt(shape, i, c)}`;
  if (shape.form.gate === 'scalar') return [`decay[${at}]`, `decay[${at}]`];
  return [`decay[(${at}) / 4u]`, `decay[(${at}) / 4u + 1u]`];
}

/** WGSL of eight numbers times e^(L - L') of their channels, times `by`. */
export function decayed(
  eight: string,
  [low, high]: readonly [string, string],
  [lowFrom, highFrom]: readonly [string, string],
  by = '1.0',
): string {
  return `decayed_eight(${eight}, ${by}, vec4f(${low} - ${lowFrom}), vec4f(${high} - ${highFrom}))`;
}

export const decayedFunction = `fn decayed_eight(eight: vec4u, by: f32, low: vec4f, high: vec4f) -> vec4u {
  return eight_of(low_of(eight) * (by * exp(low)), high_of(eight) * (by * exp(high)));
}`;

/** Values of `lines` tokens and the ones of the normaliser; zeros from `count` on. */
export function stageValues(
  { form }: DualShape,
  to: string,
  pitch: number,
  first: string,
  count: string,
  lines: number = tileTokens,
): string {
  const { kvHeads, headDim, normaliser } = form;
  const eights = headDim / 8;
  const value = (line: string, eight: string) =>
    `select(vec4u(), v[((${first} + min(${line}, ${count} - 1u)) * ${kvHeads}u + kv) * ${eights}u + ${eight}], ${line} < ${count})`;
  const ones = `
    for (var e = lane; e < ${2 * lines}u; e += ${size}u) {
      store_${to}(e / 2u * ${pitch}u + ${headDim}u + e % 2u * 8u, vec4u(select(0u, 0x3c00u, e % 2u == 0u), 0u, 0u, 0u));
    }`;
  return stage(to, headDim, pitch, value, lines) + (normaliser ? ones : '');
}

const stateTokens = 32; // at a time: of more, fewer workgroups would fit the workgroup memory

/** chunks = U: one workgroup a chunk, kv head, state and part of its channels. */
export function chunkStates(shape: DualShape): Kernel {
  const { form, width } = shape;
  const { kvHeads, states } = form;
  const parts = partsOf(width);
  const channels = width / parts;
  const columns = paddedColumns(shape);
  const [pitch, valuePitch] = [pitchOf(channels), pitchOf(columns)];
  const [down, across] = [upTo(channels / 64), upTo(columns / 16)];
  const keys = (line: string, eight: string) => {
    const item = `(first + min(${line}, count - 1u))`;
    const c = `part * ${channels}u + ${eight} * 8u`;
    const phi = `phi_k[((${item} * ${kvHeads}u + kv) * ${width}u + ${c}) / 8u]`;
    const [from, to] = [decayEight(shape, item, 'state', c), decayEight(shape, 'end', 'state', c)];
    return `select(vec4u(), ${decayed(phi, to, from)}, ${line} < count)`;
  };
  return kernel({
    name: 'chunk-states',
    buffers: {
      phi_k: ['vec4u', 'read'],
      v: ['vec4u', 'read'],
      decay: [decayType(shape), 'read'],
      chunks: ['f32', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${halves('rows', stateTokens * pitch)}
${halves('columns', stateTokens * valuePitch)}
${eightFunctions}
${decayedFunction}`,
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
  for (var t = 0u; t < tokens; t += ${stateTokens}u) {
    let first = row.z + tile.y + t;
    let count = min(${stateTokens}u, tokens - t);
    workgroupBarrier();
${stage('rows', channels, pitch, keys, stateTokens)}
${stageValues(shape, 'columns', valuePitch, 'first', 'count', stateTokens)}
    workgroupBarrier();
${upTo(stateTokens / 16)
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

/** Workgroups of scanChunks for the elements of a state of one head, two a thread. */
export function scanGroups(shape: DualShape): number {
  return Math.ceil((shape.width * paddedColumns(shape)) / 2 / scanSize);
}

/**
 * WGSL of growth: a power of two that states have about grown by after so many tokens. They would grow beyond what a half can
 * hold; the queries take it back.
 */
export const growthFunction: string = `fn growth(tokens: u32) -> f32 {
  return ldexp(1.0, i32(firstLeadingBit(1u + tokens / ${leastChunk}u)));
}`;

/**
 * starts = S at the start of every chunk in float16 by its growth, from U of every chunk (not in a replay, which begins at
 * zero); the state moves to the end of the row. A long row a workgroup.
 */
export function scanChunks(shape: DualShape, replay: boolean): Kernel {
  const { form, width } = shape;
  const { kvHeads, states } = form;
  const padded = paddedColumns(shape);
  const columns = columnsOf(form);
  const eight = upTo(8);
  return kernel({
    name: replay ? 'scan-chunks-replay' : 'scan-chunks',
    buffers: {
      decay: ['f32', 'read'],
      chunks: ['vec2f', 'read'],
      ...(replay ? {} : { starts: ['u32', 'write'] as const }),
      states: ['f32', 'write'],
    },
    module: replay ? '' : growthFunction,
    size: scanSize,
    main: `  let long = long_at(group.x);
  let row = row_at(long.x);
  let kv = group.y % ${kvHeads}u;
  let e = 2u * (group.z * ${scanSize}u + lane);
  if (e >= ${width * padded}u) { return; }
  let c = e / ${padded}u;
  let column = e % ${padded}u;
  let own = ((row.x * ${states * kvHeads}u + group.y) * ${width}u + c) * ${columns}u + column;
  var s = vec2f();
${
  replay
    ? ''
    : `  if (column < ${columns}u) { s.x = states[own]; }
  if (column + 1u < ${columns}u) { s.y = states[own + 1u]; }`
}
  let count = long.z;
  let stride = ${chunkWidth(shape) / 2}u;
  let base = long.y * stride + (group.y * ${width * padded}u + e) / 2u;
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
${replay ? '' : `      starts[base + j${n} * stride] = pack2x16float(s / growth(row.y + j${n} * ${chunkTokens}));\n`}      s = s * d${n} + u${n};
    }`,
  )
  .join('\n')}
  }
  if (column < ${columns}u) { states[own] = s.x; }
  if (column + 1u < ${columns}u) { states[own + 1u] = s.y; }`,
  });
}
