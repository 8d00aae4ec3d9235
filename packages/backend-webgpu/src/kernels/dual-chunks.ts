import {
  columnBlock,
  columnsOf,
  type DualShape,
  gateBuffers,
  gateColumns,
  logDecayFunction,
  mixFunction,
} from './dual-linear-attention.js';
import { type Kernel, kernel, shortRow, tileTokens, upTo } from './kernel.js';

// The dual layer of long rows, in chunks of 64 tokens (Yang et al. 2023, arXiv 2312.06635, section 4): inside a chunk a masked
// product of queries and keys, between chunks a state. With L the sum of log decays from the start of the chunk,
//   A_ts = sum_i gamma_i e^(L_it - L_is) phi(q_t).phi(k_s), s <= t                    chunkScores
//   o_t = sum_s A_ts v_s + sum_i gamma_i e^(L_it) phi(q_t)^T S_i                      chunkWalk
//   S_i <- e^(L_iC) S_i + sum_s e^(L_iC - L_is) phi(k_s) v_s^T
// No exponent is positive: the factored form e^L * e^-L overflows.

const chunk: number = tileTokens;
const depth = 16; // channels in workgroup memory at a time
const stride: number = chunk / 4 + 1; // vectors of four tokens of a channel or column; one more against bank conflicts

/**
 * decay [tokens, gate width] = L from the start of every tile or chunk of `tokens` (WGSL) of the long rows: one thread a gate
 * of it.
 */
export function cumulate(shape: DualShape, tokens: string = `${chunk}u`): Kernel {
  const width = gateColumns(shape.form);
  const eight = [...Array(8).keys()];
  return kernel({
    name: 'cumulate-decays',
    buffers: { ...gateBuffers(shape), decay: ['f32', 'write'] },
    module: logDecayFunction(shape),
    size: 64,
    main: `  let g = group.x * 64u + lane;
  if (g >= ${width}u) { return; }
  let tile = tile_at(group.y);
  if (tile.y % ${tokens} != 0u) { return; }
  let first = row_at(tile.x);
  let count = min(${tokens}, first.w - tile.y);
  var sum = 0.0;
  // Eight loads before their stores.
  for (var t = 0u; t < count; t += 8u) {
    let token = vec4u(first.z + tile.y + t, tile.x, first.y + tile.y + t, 0u);
    let left = count - 1u - t;
${eight.map((n) => `    let d${n} = log_decay(token + min(${n}u, left) * vec4u(1u, 0u, 1u, 0u), g);`).join('\n')}
${eight.map((n) => `    sum += d${n};\n    if (${n}u <= left) { decay[(token.x + ${n}u) * ${width}u + g] = sum; }`).join('\n')}
  }`,
  });
}

const four = [0, 1, 2, 3];

/** WGSL of L of a state at a token of the step, of a channel where gates are vectors. */
function decayOf({ form }: DualShape): (i: number, token: string, c: string) => string {
  const { kvHeads, headDim, gate } = form;
  const gates = gateColumns(form);
  return (i, token, c) =>
    `decay[(${token}) * ${gates}u + ${gate === 'vector' ? `(${i * kvHeads}u + kv) * ${headDim}u + ${c}` : `${i * kvHeads}u + kv`}]`;
}

// Blocks of 16 by 16 of a tile, (row, column): below the diagonal, on it, above it, so that a subgroup has alike ones.
const blockList = ['1, 0', '2, 0', '2, 1', '3, 0', '3, 1', '3, 2', '0, 0', '1, 1', '2, 2', '3, 3'];
const emptyBlocks = ['0, 1', '0, 2', '0, 3', '1, 2', '1, 3', '2, 3'];

/**
 * WGSL of a channel's part in 4 by 4 scores with vector gates. Off the diagonal both factors are at most 1 with the first row of
 * the queries' 16 as reference; on it, pair by pair.
 */
function vectorStep(states: number): string {
  return upTo(states)
    .map(
      (i) => `      {
${four.map((j) => `        let lq${j} = ls[${i * chunk * depth}u + (row + ${j}u) * ${depth}u + d];`).join('\n')}
${four.map((j) => `        let lk${j} = ls[${i * chunk * depth}u + (column + ${j}u) * ${depth}u + d];`).join('\n')}
        if (apart) {
          let r = ls[${i * chunk * depth}u + row / 16u * ${16 * depth}u + d];
          let keys_here = vec4f(${four.map((j) => `k${j} * exp(r - lk${j})`).join(', ')}) * mixed${i};
${four.map((j) => `          acc[${j}] += q${j} * exp(lq${j} - r) * keys_here;`).join('\n')}
        } else {
          let keys_here = vec4f(k0, k1, k2, k3) * mixed${i};
${four.map((j) => `          acc[${j}] += q${j} * keys_here * exp(min(lq${j} - vec4f(lk0, lk1, lk2, lk3), vec4f()));`).join('\n')}
        }
      }`,
    )
    .join('\n');
}

/** scores [tokens, heads, 64]: A, one workgroup a tile and head, 4 by 4 entries a thread, a block of 16 by 16 in 16 threads. */
export function chunkScores(shape: DualShape, mixPerHead: boolean): Kernel {
  const { heads, form, width, type } = shape;
  const { states, kvHeads, gate } = form;
  const vector = gate === 'vector';
  const is = upTo(states);
  const logDecay = decayOf(shape);
  const scalarFinish = `      weight = ${is.map((i) => `mixed${i} * exp(min(${logDecay(i, 'first + t', '0u')} - ${logDecay(i, 'first + s', '0u')}, 0.0))`).join('\n        + ')};`;
  return kernel({
    name: 'chunk-scores',
    buffers: {
      phi_q: [type, 'read'],
      phi_k: [type, 'read'],
      decay: ['f32', 'read'],
      mix_logits: ['f32', 'read'],
      scores: ['f32', 'write'],
    },
    module: `${mixFunction(states, mixPerHead)}
const blocks = array(${[...blockList, ...emptyBlocks].map((at) => `vec2u(${at})`).join(', ')});
var<workgroup> qs: array<f32, ${chunk * depth}>; // [tokens, depth]
var<workgroup> ks: array<f32, ${chunk * depth}>;
${vector ? `var<workgroup> ls: array<f32, ${states * chunk * depth}>; // [states, tokens, depth]` : ''}`,
    size: 256,
    main: `  let tile = tile_at(group.x);
  let first = row_at(tile.x).z + tile.y;
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let block = blocks[lane / 16u] * 16u;
  let row = block.x + lane % 16u / 4u * 4u;
  let column = block.y + lane % 4u * 4u;
  let apart = block.x > block.y;
${is.map((i) => `  let mixed${i} = gamma(head, ${i}u);`).join('\n')}
  var acc: array<vec4f, 4>;
  for (var c0 = 0u; c0 < ${width}u; c0 += ${depth}u) {
    for (var e = lane; e < ${chunk * depth}u; e += 256u) {
      let c = c0 + e % ${depth}u;
      let t = min(e / ${depth}u, tile.z - 1u);
      let inside = c < ${width}u && e / ${depth}u < tile.z;
      let channel = min(c, ${width - 1}u);
      qs[e] = select(0.0, f32(phi_q[((first + t) * ${heads}u + head) * ${width}u + channel]), inside);
      ks[e] = select(0.0, f32(phi_k[((first + t) * ${kvHeads}u + kv) * ${width}u + channel]), inside);
${vector ? is.map((i) => `      ls[${i * chunk * depth}u + e] = ${logDecay(i, 'first + t', 'channel')};`).join('\n') : ''}
    }
    workgroupBarrier();
    for (var d = 0u; d < ${depth}u && block.x >= block.y; d++) {
${four.map((j) => `      let q${j} = qs[(row + ${j}u) * ${depth}u + d];`).join('\n')}
${four.map((j) => `      let k${j} = ks[(column + ${j}u) * ${depth}u + d];`).join('\n')}
${vector ? vectorStep(states) : four.map((j) => `      acc[${j}] += q${j} * vec4f(k0, k1, k2, k3);`).join('\n')}
    }
    workgroupBarrier();
  }
  for (var j = 0u; j < 4u; j++) {
    let t = row + j;
    if (t >= tile.z) { break; }
    for (var n = 0u; n < 4u; n++) {
      let s = column + n;
      var weight = 1.0;
${vector ? '' : `      if (s <= t) {\n${scalarFinish}\n      }`}
      scores[((first + t) * ${heads}u + head) * ${chunk}u + s] = select(0.0, acc[j][n] * weight, s <= t);
    }
  }`,
  });
}

/**
 * From chunk to chunk, one workgroup a row, kv head and 16 columns of the state: sums [tokens, heads, columns]. Thread (part,
 * column) keeps channels part, part + 16, ... of its column of every state. `replay`: from zero, nothing read.
 */
export function chunkWalk(shape: DualShape, mixPerHead: boolean, replay: boolean): Kernel {
  const { form, width, type } = shape;
  const { states, kvHeads, headDim } = form;
  const columns = columnsOf(form);
  const channels = Math.ceil(width / depth);
  const is = upTo(states);
  const cell = (i: number) =>
    `(((row.x * ${states}u + ${i}u) * ${kvHeads}u + kv) * ${width}u + c) * ${columns}u + column`;
  const ownChannels = (body: string) => `  for (var m = 0u; m < ${channels}u; m++) {
    let c = m * ${depth}u + part;
    if (c < ${width}u && inside) {
${body}
    }
  }`;
  return kernel({
    name: replay ? 'chunk-walk-replay' : 'chunk-walk',
    buffers: {
      ...(replay ? {} : { phi_q: [type, 'read'] as const }),
      phi_k: [type, 'read'],
      v: [type, 'read'],
      decay: ['f32', 'read'],
      ...(replay ? {} : { mix_logits: ['f32', 'read'] as const, scores: ['vec4f', 'read'] as const }),
      states: ['f32', 'write'],
      ...(replay ? {} : { sums: ['f32', 'write'] as const }),
    },
    module: `${replay ? '' : mixFunction(states, mixPerHead)}
${
  replay
    ? ''
    : `var<workgroup> qs: array<vec4f, ${copiesOf(shape).length * chunk * 4}>; // [copies, tokens, depth / 4]
var<workgroup> block: array<f32, ${states * depth * columnBlock}>; // [states, depth, columns]`
}
var<workgroup> ks: array<vec4f, ${depth * stride}>; // [depth, tokens / 4]
var<workgroup> vs: array<vec4f, ${columnBlock * stride}>; // [columns, tokens / 4]`,
    size: 256,
    main: `  let row = row_at(group.x);
  if (row.w <= ${shortRow}u) { return; }
  let kv = group.y;
  let column = group.z * ${columnBlock}u + lane % ${columnBlock}u;
  let part = lane / ${columnBlock}u;
  let inside = column < ${columns}u;
${is.map((i) => `  var state${i}: array<f32, ${channels}>;`).join('\n')}
${replay ? '' : ownChannels(is.map((i) => `      state${i}[m] = states[${cell(i)}];`).join('\n'))}
  for (var begin = 0u; begin < row.w; begin += ${chunk}u) {
    let first = row.z + begin;
    let count = min(${chunk}u, row.w - begin);
    let end = first + count - 1u;
    workgroupBarrier();
    // Thread (four tokens, column).
    {
      var value = vec4f();
      for (var n = 0u; n < 4u; n++) {
        let s = part * 4u + n;
        if (s >= count || !inside) { continue; }
        if (column < ${headDim}u) { value[n] = f32(v[((first + s) * ${kvHeads}u + kv) * ${headDim}u + column]); }
        else { value[n] = 1.0; }
      }
      vs[lane % ${columnBlock}u * ${stride}u + part] = value;
    }
    workgroupBarrier();
${replay ? '' : readStates(shape)}
${is.map((i) => moveState(shape, i)).join('\n')}
  }
${ownChannels(is.map((i) => `      states[${cell(i)}] = state${i}[m];`).join('\n'))}`,
  });
}

/** States whose queries have a copy of their own: with scalar gates one serves all. */
function copiesOf({ form }: DualShape): number[] {
  return upTo(form.gate === 'vector' ? form.states : 1);
}

/** WGSL that reads the states for the queries of a chunk and adds what the chunk's own keys give. */
function readStates(shape: DualShape): string {
  const { heads, form, width } = shape;
  const { states, kvHeads, gate } = form;
  const vector = gate === 'vector';
  const columns = columnsOf(form);
  const together = heads / kvHeads;
  const channels = Math.ceil(width / depth);
  const [is, copies] = [upTo(states), copiesOf(shape)];
  const logDecay = decayOf(shape);
  return `    for (var h = 0u; h < ${together}u; h++) {
      let head = kv * ${together}u + h;
${is.map((i) => four.map((j) => `      var o${i}_${j} = 0.0;`).join('\n')).join('\n')}
      for (var m = 0u; m < ${channels}u; m++) {
        workgroupBarrier();
${is.map((i) => `        block[${i * depth * columnBlock}u + lane] = state${i}[m];`).join('\n')}
        // Thread (token, four channels).
        {
          let t = lane / 4u;
          let there = t < count;
          let item = first + min(t, count - 1u);
          let c0 = m * ${depth}u + lane % 4u * 4u;
          var q = vec4f();
${vector ? is.map((i) => `          var l${i} = vec4f();`).join('\n') : ''}
          for (var n = 0u; n < 4u; n++) {
            let c = min(c0 + n, ${width - 1}u);
            q[n] = select(0.0, f32(phi_q[(item * ${heads}u + head) * ${width}u + c]), there && c0 + n < ${width}u);
${vector ? is.map((i) => `            l${i}[n] = ${logDecay(i, 'item', 'c')};`).join('\n') : ''}
          }
${copies.map((i) => `          qs[${i * chunk * 4}u + lane] = q${vector ? ` * exp(l${i})` : ''};`).join('\n')}
        }
        workgroupBarrier();
        for (var d = 0u; d < 4u; d++) {
${is
  .map(
    (i) =>
      `          let s${i} = vec4f(${four.map((n) => `block[${i * depth * columnBlock}u + (d * 4u + ${n}u) * ${columnBlock}u + lane % ${columnBlock}u]`).join(', ')});`,
  )
  .join('\n')}
${is.flatMap((i) => four.map((j) => `          o${i}_${j} += dot(qs[${(vector ? i : 0) * chunk * 4}u + (part + ${16 * j}u) * 4u + d], s${i});`)).join('\n')}
        }
      }
${four
  .map(
    (j) => `      if (part + ${16 * j}u < count && inside) {
        let item = first + part + ${16 * j}u;
        var sum = ${is.map((i) => `gamma(head, ${i}u) * o${i}_${j}${vector ? '' : ` * exp(${logDecay(i, 'item', '0u')})`}`).join(' + ')};
        let line = (item * ${heads}u + head) * ${chunk / 4}u;
        for (var s = 0u; s <= ${4 * j}u + part / 4u; s++) { sum += dot(scores[line + s], vs[lane % ${columnBlock}u * ${stride}u + s]); }
        sums[(item * ${heads}u + head) * ${columns}u + column] = sum;
      }`,
  )
  .join('\n')}
    }`;
}

/** WGSL that moves a state from the start of a chunk to its end. */
function moveState(shape: DualShape, i: number): string {
  const { form, width } = shape;
  const { kvHeads } = form;
  const channels = Math.ceil(width / depth);
  const logDecay = decayOf(shape);
  return `    for (var m = 0u; m < ${channels}u; m++) {
      // Thread (four tokens, channel).
      {
        let c = m * ${depth}u + lane % ${depth}u;
        let channel = min(c, ${width - 1}u);
        let last = ${logDecay(i, 'end', 'channel')};
        var key = vec4f();
        for (var n = 0u; n < 4u; n++) {
          let s = part * 4u + n;
          if (s >= count || c >= ${width}u) { continue; }
          let item = first + s;
          key[n] = f32(phi_k[(item * ${kvHeads}u + kv) * ${width}u + c]) * exp(last - ${logDecay(i, 'item', 'channel')});
        }
        ks[lane % ${depth}u * ${stride}u + part] = key;
      }
      workgroupBarrier();
      var sum = 0.0;
      for (var s = 0u; s < ${chunk / 4}u; s++) { sum += dot(ks[part * ${stride}u + s], vs[lane % ${columnBlock}u * ${stride}u + s]); }
      let own = min(m * ${depth}u + part, ${width - 1}u);
      state${i}[m] = state${i}[m] * exp(${logDecay(i, 'end', 'own')}) + sum;
      workgroupBarrier();
    }`;
}
