import { type DualShape, mixFunction } from './dual-linear-attention.js';
import { decayEight, decayed, decayedFunction, partsOf } from './dual-matrices.js';
import { type Kernel, kernel, tileTokens } from './kernel.js';
import {
  eightFunctions,
  fours,
  halves,
  load,
  matrixTypes,
  multiply,
  pitchOf,
  stage,
  stageSize,
  storeSums,
  upTo,
} from './matrices.js';

// A of a tile of 64 tokens with vector gates, in products of matrices. e^(L_t - L_s) must be split over the factors without a
// positive exponent, so a pair of tokens needs a reference between them (Yang et al. 2023, arXiv 2312.06635, section 4.3, have
// two levels of it). Here a pair belongs to the level of the highest bit in which t and s differ: t has it and s does not, and
// the first token that has it, with the same bits above, lies between them and is the same for all pairs of a block. So every
// token has one reference a level: it is a query where its bit is set, and a key where it is not.

const levels = upTo(Math.log2(tileTokens)).reverse();
const diagonal = -1;

/**
 * inner [tokens, heads, 64]: A of every query and the keys of its tile up to itself; nothing is written for blocks of 16 later
 * keys. Definition: chunkScores of dual-chunks.ts. One workgroup a tile and head.
 */
export function scoreTiles(shape: DualShape, mixPerHead: boolean): Kernel {
  const { heads, form, width } = shape;
  const { kvHeads, states } = form;
  const parts = partsOf(width);
  const channels = width / parts;
  const pitch = pitchOf(channels);
  const [here, there] = [decayEight(shape, 'item', 'i', 'c'), decayEight(shape, 'between', 'i', 'c')];
  const chains = [...levels, diagonal].map((level) => chain(level, states, parts, channels, pitch));
  return kernel({
    name: 'score-tiles',
    buffers: {
      phi_q: ['vec4u', 'read'],
      phi_k: ['vec4u', 'read'],
      decay: ['vec4f', 'read'],
      mix_logits: ['f32', 'read'],
      inner: ['vec4f', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${mixFunction(states, mixPerHead)}
${halves('rows', tileTokens * pitch)} // queries and keys as a level has them; at last the queries, then the keys
${fours('scores', (stageSize / 32) * 256)} // a block of 16 by 16 for every subgroup
${eightFunctions}
${decayedFunction}
fn query_at(item: u32, head: u32, c: u32) -> vec4u { return phi_q[((item * ${heads}u + head) * ${width}u + c) / 8u]; }
fn key_at(item: u32, kv: u32, c: u32) -> vec4u { return phi_k[((item * ${kvHeads}u + kv) * ${width}u + c) / 8u]; }
fn factor_at(first: u32, last: u32, head: u32, i: u32, mixed: f32, t: u32, level: u32, c: u32) -> vec4u {
  let kv = head / ${heads / kvHeads}u;
  let item = first + min(t, last);
  let between = first + min(((t >> level) | 1u) << level, last);
  if ((t >> level) % 2u == 1u) { return ${decayed('query_at(item, head, c)', here, there, 'mixed')}; }
  return ${decayed('key_at(item, kv, c)', there, here)};
}`,
    size: stageSize,
    main: `  let tile = tile_at(group.x);
  let first = row_at(tile.x).z + tile.y;
  let last = tile.z - 1u;
  let head = group.y;
  let kv = head / ${heads / kvHeads}u;
  let subgroup = lane / 32u;
  let own = lane % 32u;
${chains.join('\n')}
  let mine = subgroup * 256u;
  let line = own / 2u;
  let column = own % 2u * 8u;
${[5, 4].map((level) => writeBlock(level, heads)).join('\n')}
  {
    var a: array<f32, 8>;
    let t = subgroup * 16u + line;
${[3, 2, 1, 0, diagonal].map(gather).join('\n')}
${write(
  't',
  'subgroup * 16u + column',
  [0, 4].map((e) => `vec4f(a[${e}], a[${e + 1}], a[${e + 2}], a[${e + 3}])`),
  heads,
)}
  }`,
  });
}

/** Block of 16 queries and of 16 keys of a subgroup at a level; at level 4 only two subgroups have any. */
function blocksOf(level: number): { readonly query: string; readonly key: string } {
  if (level === 5) return { query: '(2u + subgroup / 2u)', key: '(subgroup % 2u)' };
  if (level === 4) return { query: '(1u + subgroup % 2u * 2u)', key: '(subgroup % 2u * 2u)' };
  return { query: 'subgroup', key: 'subgroup' };
}

const nameOf = (level: number): string => (level === diagonal ? 'itself' : `level${level}`);

/** The sums of a level over states and channels. */
function chain(level: number, states: number, parts: number, channels: number, pitch: number): string {
  const { query, key } = blocksOf(level);
  const name = nameOf(level);
  const fill = (value: (line: string, c: string) => string, p: number): string =>
    stage('rows', channels, pitch, (line, eight) => value(line, `${p * channels}u + 8u * ${eight}`));
  const at = (block: string, d: number) => `${block} * ${16 * pitch}u + ${16 * d}u`;
  const deep = upTo(channels / 16);
  const right = (d: number) => load('Right', 'col', 'rows', at(key, d), pitch);
  const left = (d: number) => load('Left', 'row', 'rows', at(query, d), pitch);
  // Without decay the states have one product: their shares add up to 1.
  const own = (p: number) => `  workgroupBarrier();
${fill((line, c) => `query_at(first + min(${line}, last), head, ${c})`, p)}
  workgroupBarrier();
${deep.map((d) => `  let q${p}_${d} = ${left(d)};`).join('\n')}
  workgroupBarrier();
${fill((line, c) => `key_at(first + min(${line}, last), kv, ${c})`, p)}
  workgroupBarrier();
${deep.map((d) => `  ${multiply(name, `q${p}_${d}`, right(d))}`).join('\n')}`;
  const apart = (p: number) => `    workgroupBarrier();
${fill((line, c) => `factor_at(first, last, head, i, mixed, ${line}, ${level}u, ${c})`, p)}
    workgroupBarrier();
${deep.map((d) => `    ${multiply(name, left(d), right(d))}`).join('\n')}`;
  return level === diagonal
    ? `  var ${name} = Sum();\n${upTo(parts).map(own).join('\n')}`
    : `  var ${name} = Sum();
  for (var i = 0u; i < ${states}u; i++) {
    let mixed = gamma(head, i);
${upTo(parts).map(apart).join('\n')}
  }`;
}

function store(level: number): string {
  return `    workgroupBarrier();
    ${storeSums('scores', 'mine', nameOf(level), 16)}
    workgroupBarrier();`;
}

/** What a level has of a block on the diagonal. */
function gather(level: number): string {
  return `${store(level)}
    for (var e = 0u; e < 8u; e++) {
      let differ = t ^ (subgroup * 16u + column + e);
      if (${level === diagonal ? 'differ == 0u' : `(differ >> ${level}u) == 1u`}) { a[e] = scores[mine / 4u + own * 2u + e / 4u][e % 4u]; }
    }`;
}

/** A block below the diagonal, which is all of one level. */
function writeBlock(level: number, heads: number): string {
  const { query, key } = blocksOf(level);
  const guard = level === 4 ? '    if (subgroup < 2u) {\n' : '    {\n';
  return `  {
${store(level)}
${guard}${write(`(${query} * 16u + line)`, `${key} * 16u + column`, ['scores[mine / 4u + own * 2u]', 'scores[mine / 4u + own * 2u + 1u]'], heads)}
    }
  }`;
}

/** Eight neighbours of a query's scores. */
function write(t: string, s: string, [low, high]: readonly string[], heads: number): string {
  return `    if (${t} <= last) {
      let at = (((first + ${t}) * ${heads}u + head) * ${tileTokens}u + ${s}) / 4u;
      inner[at] = ${low};
      inner[at + 1u] = ${high};
    }`;
}
