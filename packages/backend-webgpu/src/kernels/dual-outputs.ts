import { columnsOf, type DualShape, mixFunction } from './dual-linear-attention.js';
import {
  decayEight,
  decayed,
  decayedFunction,
  decayType,
  growthFunction,
  paddedColumns,
  partsOf,
  stageValues,
} from './dual-matrices.js';
import { chunkTokens, float, type Kernel, kernel, tileTokens, upTo } from './kernel.js';
import {
  eightFunctions,
  fours,
  halves,
  load,
  matrixTypes,
  multiply,
  pitchOf,
  scorePitchOf,
  stage,
  stageSize,
  storeSums,
} from './matrices.js';

// What the queries of long rows read: the tokens of their chunk, and the states before it (see dual-matrices.ts).

const scorePitch = scorePitchOf(tileTokens);
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
      phi_q: ['vec4u', 'read'],
      phi_k: ['vec4u', 'read'],
      v: ['vec4u', 'read'],
      decay: [decayType(shape), 'read'],
      mix_logits: ['f32', 'read'],
      starts: ['vec4u', 'read'],
      ...(vector ? { inner: ['vec4f', 'read'] as const } : {}),
      ...(scale === undefined ? { sums: ['f32', 'write'] as const } : { y: ['vec4u', 'write'] as const }),
    },
    matrices: true,
    module: `${matrixTypes}
${mixFunction(states, mixPerHead)}
${halves('rows', tileTokens * pitch)} // queries, keys, values, states
${fours('scores', tileTokens * scorePitch)} // A, and tiles of the result
${halves('weights', tileTokens * weightPitch)} // A
${eightFunctions}
${decayedFunction}
${growthFunction}
${vector ? '' : `var<workgroup> keyed: array<f32, ${states * tileTokens}>; // L of the keys, [states, keys]`}`,
    size: stageSize,
    main: `  let tile = tile_at(group.x);
  let row = row_at(tile.x);
  let first = row.z + tile.y;
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let member = own % 4u * 8u;
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
${vector ? '' : is.map((i) => `    if (lane < ${tileTokens}u) { keyed[${i * tileTokens}u + lane] = ${decayEight(shape, 'key_first + min(lane, key_count - 1u)', `${i}`, '0u')[0]}; }`).join('\n')}
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
  let grown = growth(row.y + tile.y / ${chunkTokens} * ${chunkTokens});
${beforeChunk(shape, pitch)}
  let mine = subgroup * 256u;
${across
  .map(
    (c) => `  workgroupBarrier();
  ${storeSums('scores', 'mine', `o${c}`, 16)}
  workgroupBarrier();
${scale === undefined ? writeSums(shape, c) : writeHalves(shape, c, scale)}`,
  )
  .join('\n')}`,
  });
}

const queryAt =
  ({ heads, width }: DualShape, p: number) =>
  (line: string, eight: string) =>
    `phi_q[((first + min(${line}, tile.z - 1u)) * ${heads}u + head) * ${width / 8}u + ${(p * width) / partsOf(width) / 8}u + ${eight}]`;

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
  const c = (p: number, eight: string) => `${p * channels}u + ${eight} * 8u`;
  const queries = factors.map(({ i, p }) => {
    const own = queryAt(shape, p);
    const fading = (line: string, eight: string) => {
      const to = decayEight(shape, `first + min(${line}, tile.z - 1u)`, `${i}`, c(p, eight));
      return decayed(own(line, eight), to, decayEight(shape, 'first', `${i}`, c(p, eight)), `mixed${i}`);
    };
    return `  workgroupBarrier();
${stage('rows', channels, pitch, vector ? fading : own)}
  workgroupBarrier();
${fragments(`q${i}_${p}`, channels, pitch)}`;
  });
  const scores = factors.map(({ i, p }) => {
    const item = (line: string) => `(key_first + min(${line}, key_count - 1u))`;
    const own = (line: string, eight: string) =>
      `phi_k[(${item(line)} * ${kvHeads}u + kv) * ${width / 8}u + ${(p * channels) / 8}u + ${eight}]`;
    const fading = (line: string, eight: string) => {
      const from = decayEight(shape, item(line), `${i}`, c(p, eight));
      return decayed(own(line, eight), decayEight(shape, 'first', `${i}`, c(p, eight)), from);
    };
    return `    workgroupBarrier();
${stage('rows', channels, pitch, vector ? fading : own)}
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
${four.map((k) => `    ${storeSums('scores', `subgroup * ${16 * scorePitch}u + ${16 * k}u`, `s${k}`, scorePitch)}`).join('\n')}`,
  };
}

/** A of a query in four lanes, of every 32 keys eight neighbours each, decayed and masked. */
function weigh(shape: DualShape, r: number): string {
  const { form, heads } = shape;
  const is = upTo(form.states);
  const quads = upTo(4).map((j) => ({ j, at: 32 * (j >> 1) + 4 * (j & 1) }));
  const fading = (at: number) =>
    is
      .map((i) => {
        const keyed = upTo(4).map((n) => `keyed[${i * tileTokens + at + n}u + member]`);
        return `mixed${i} * exp(min(own${i} - vec4f(${keyed.join(', ')}), vec4f()))`;
      })
      .join(' + ');
  const scores = quads.map(
    ({ j, at }) => `      var a${j} = scores[(query${r} * ${scorePitch}u + member + ${at}u) / 4u];`,
  );
  const scalar = `${is.map((i) => `      let own${i} = ${decayEight(shape, `first + min(query${r}, tile.z - 1u)`, `${i}`, '0u')[0]};`).join('\n')}
${quads.map(({ j, at }) => `      a${j} *= ${fading(at)};`).join('\n')}`;
  const inner = `      if (diagonal) {
        let line = ((first + min(query${r}, tile.z - 1u)) * ${heads}u + head) * ${tileTokens}u + member;
${quads.map(({ j, at }) => `        a${j} = inner[(line + ${at}u) / 4u];`).join('\n')}
      }`;
  return `    {
${scores.join('\n')}
${form.gate === 'vector' ? inner : scalar}
      if (diagonal) {
        let here = vec4u(0u, 1u, 2u, 3u) + member;
${quads.map(({ j, at }) => `        a${j} = select(vec4f(), a${j}, here + ${at}u <= vec4u(query${r}));`).join('\n')}
      }
      let at = query${r} * ${weightPitch}u + member;
      store_weights(at, eight_of(a0, a1));
      store_weights(at + 32u, eight_of(a2, a3));
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
      const fading = (line: string, eight: string) => {
        const item = `first + min(${line}, tile.z - 1u)`;
        const to = decayEight(shape, item, `${i}`, `${p * channels}u + ${eight} * 8u`);
        return decayed(queryAt(shape, p)(line, eight), to, ['0.0', '0.0'], `mixed${i} * grown`);
      };
      const rows = upTo(channels / 64).map((part) => {
        const state = (line: string, eight: string) => {
          const row = `((tile.w * ${states}u + ${i}u) * ${kvHeads}u + kv) * ${width}u + ${p * channels + part * 64}u + ${line}`;
          return `starts[(${row}) * ${padded / 8}u + ${eight}]`;
        };
        return `  workgroupBarrier();
${stage('rows', padded, pitch, state)}
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
${stage('rows', channels, pitch, fading)}
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
    if (r < tile.z && at < ${columns}u) { sums[((first + r) * ${heads}u + head) * ${columns}u + at] = scores[(mine + e) / 4u][e % 4u]; }
  }`;
}

function writeHalves({ heads, form }: DualShape, c: number, scale: number): string {
  const four = (n: number) => `scores[mine / 4u + own * 2u + ${n}u] * ${float(scale)}`;
  return `  if (subgroup * 16u + own / 2u < tile.z) {
    let at = ((first + subgroup * 16u + own / 2u) * ${heads}u + head) * ${form.headDim}u + ${16 * c}u + own % 2u * 8u;
    y[at / 8u] = eight_of(${four(0)}, ${four(1)});
  }`;
}
