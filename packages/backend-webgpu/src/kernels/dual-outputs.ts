import { columnsOf, type DualShape, mixFunction } from './dual-linear-attention.js';
import { decayPair, paddedColumns, partsOf, stageValues } from './dual-matrices.js';
import { chunkTokens, float, type Kernel, kernel, leastChunk, tileTokens } from './kernel.js';
import { halves, load, matrixTypes, multiply, pitchOf, stage, stageSize, upTo } from './matrices.js';

// What the queries of long rows read: the tokens of their chunk, and the states before it (see dual-matrices.ts).

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
    size: stageSize,
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
