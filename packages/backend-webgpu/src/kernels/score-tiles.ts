import { type DualShape, mixFunction } from './dual-linear-attention.js';
import { decayEight, decayedFunction, partsOf } from './dual-matrices.js';
import { type Kernel, kernel, tileTokens, upTo } from './kernel.js';
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
  const pitch = pitchOf(width / parts);
  const chains = [...levels, diagonal].map((level) => chain(shape, level, parts, pitch));
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
fn key_at(item: u32, kv: u32, c: u32) -> vec4u { return phi_k[((item * ${kvHeads}u + kv) * ${width}u + c) / 8u]; }`,
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
function chain(shape: DualShape, level: number, parts: number, pitch: number): string {
  const { query, key } = blocksOf(level);
  const name = nameOf(level);
  const channels = shape.width / parts;
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
  const apart = (p: number) => `    {
      workgroupBarrier();
${stageFactors(shape, level, `${p * channels}u`, channels, pitch)}
      workgroupBarrier();
${deep.map((d) => `      ${multiply(name, left(d), right(d))}`).join('\n')}
    }`;
  return level === diagonal
    ? `  var ${name} = Sum();\n${upTo(parts).map(own).join('\n')}`
    : `  var ${name} = Sum();
  for (var i = 0u; i < ${shape.form.states}u; i++) {
    let mixed = gamma(head, i);
${upTo(parts).map(apart).join('\n')}
  }`;
}

/**
 * Queries and keys as a level has them. The tokens of a lane differ in the bit of the level by their number alone, so that
 * nothing branches; they share references.
 */
function stageFactors(shape: DualShape, level: number, from: string, channels: number, pitch: number): string {
  const eights = channels / 8;
  const count = (tileTokens * eights) / stageSize;
  const bits = Math.log2(count);
  const low = Math.min(level, levels.length - bits); // the lowest bit that comes from the number
  const own = `lane / ${eights}u`;
  const around = `(((${own}) >> ${low}u) << ${low + bits}u) + ((${own}) & ${(1 << low) - 1}u)`;
  const above = level - low;
  const reference = (n: number) => ((n >> above) | 1) << above;
  const references = [...new Set(upTo(count).map(reference))];
  const item = (n: number) => `(first + min(around + ${n << low}u, last))`;
  const between = (n: number) => `(first + min(((around + ${n << low}u) >> ${level}u) << ${level}u, last))`;
  const decays = (name: string, at: string): string => {
    const [lows, highs] = decayEight(shape, at, 'i', 'c');
    return `      let ${name}_low = ${lows};\n      let ${name}_high = ${highs};`;
  };
  const value = (n: number): string => {
    const query = (n >> above) % 2 === 1;
    const [to, back] = query ? [`here${n}`, `between${reference(n)}`] : [`between${reference(n)}`, `here${n}`];
    return `decayed_eight(eight${n}, ${query ? 'mixed' : '1.0'}, ${to}_low - ${back}_low, ${to}_high - ${back}_high)`;
  };
  return `      let around = ${around};
      let c = ${from} + lane % ${eights}u * 8u;
${references.map((n) => decays(`between${n}`, between(n))).join('\n')}
${upTo(count)
  .map((n) => {
    const eight = (n >> above) % 2 === 1 ? `query_at(${item(n)}, head, c)` : `key_at(${item(n)}, kv, c)`;
    return `      let eight${n} = ${eight};\n${decays(`here${n}`, item(n))}`;
  })
  .join('\n')}
${upTo(count)
  .map((n) => `      store_rows((around + ${n << low}u) * ${pitch}u + lane % ${eights}u * 8u, ${value(n)});`)
  .join('\n')}`;
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
