import { type DualShape, enteringToken, entriesOf, ringOf } from './dual-linear-attention.js';
import { type Kernel, kernel, tileTokens } from './kernel.js';
import { halves, load, matrixTypes, multiply, pitchOf, stage, stageSize, upTo } from './matrices.js';
import { ropeBuffer, ropeFunctions } from './rope.js';

const scorePitch = tileTokens + 8; // as in tile-attention.ts

/** Whether the kernel can be used: features in tiles of 64. */
export function featureTileable({ form, width }: DualShape): boolean {
  return (width / 2) % 64 === 0 && form.headDim % 16 === 0 && form.headDim <= 128;
}

/**
 * As `features` of dual-linear-attention.ts, in float16 by subgroup matrices: one workgroup a head and 64 tokens of the step,
 * whatever their rows; 16 tokens a subgroup, which in the end have four lanes each.
 */
export function featureTiles(shape: DualShape, of: 'query' | 'key'): Kernel {
  const { heads, form, width } = shape;
  const { headDim, rope, ropeInState, kvHeads } = form;
  const count = of === 'query' ? heads : kvHeads;
  const entering = of === 'key' && form.exact !== undefined;
  const turns = rope !== undefined && (ropeInState || entering);
  const half = width / 2;
  const pitch = pitchOf(headDim);
  const [two, four, eight, deep, blocks] = [upTo(2), upTo(4), upTo(8), upTo(headDim / 16), upTo(half / 64)];
  const own = (r: number, b: number, j: number) => `y${r}_${b}_${j}`;
  const weight = (b: number) => (line: string, word: string) =>
    `w[((head * ${half}u + ${64 * b}u + ${line}) * ${headDim}u) / 2u + ${word}]`;
  return kernel({
    name: `feature-tiles-${of}`,
    buffers: {
      x: ['u32', 'read'],
      w: ['vec2f', 'read'],
      ...(turns ? ropeBuffer : {}),
      ...(entering ? { ring: ['u32', 'read'] as const } : {}),
      phi: ['u32', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${turns ? ropeFunctions(rope) : ''}
${entering ? ringOf(form) : ''}
${halves('rows', tileTokens * pitch)} // tokens, then weights
var<workgroup> scores: array<f32, ${tileTokens * scorePitch}>; // [tokens, 64 features]
${sourceOf(shape, of)}`,
    size: stageSize,
    main: `  let first = group.x * ${tileTokens}u;
  let count = min(${tileTokens}u, batch[0].y - first);
  let head = group.y;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let member = own % 4u * 2u;
${stage('rows', headDim / 2, pitch, (line, word) => `features_of(first + min(${line}, count - 1u), head, 2u * ${word})`, 'vec2f')}
  workgroupBarrier();
${deep.map((d) => `  let x${d} = ${load('Left', 'row', 'rows', `subgroup * ${16 * pitch}u + ${16 * d}u`, pitch)};`).join('\n')}
${two.map((r) => `  let row${r} = subgroup * 16u + ${8 * r}u + own / 4u;\n  var top${r} = 0.0;`).join('\n')}
${blocks
  .map(
    (b) => `  workgroupBarrier();
${stage('rows', headDim / 2, pitch, weight(b), 'vec2f')}
  workgroupBarrier();
  {
${four.map((k) => `    var s${k} = Sum();`).join('\n')}
${deep
  .flatMap((d) =>
    four.map(
      (k) => `    ${multiply(`s${k}`, `x${d}`, load('Right', 'col', 'rows', `${16 * k * pitch + 16 * d}u`, pitch))}`,
    ),
  )
  .join('\n')}
${four.map((k) => `    subgroupMatrixStore<row_major>(&scores, subgroup * ${16 * scorePitch}u + ${16 * k}u, s${k}, ${scorePitch}u);`).join('\n')}
  }
  workgroupBarrier();
${two
  .flatMap((r) =>
    eight.map((j) => {
      const at = `row${r} * ${scorePitch}u + member + ${8 * j}u`;
      const name = own(r, b, j);
      return `  let ${name} = vec2f(scores[${at}], scores[${at} + 1u]);\n  top${r} = max(top${r}, max(abs(${name}.x), abs(${name}.y)));`;
    }),
  )
  .join('\n')}`,
  )
  .join('\n')}
${two
  .map(
    (r) => `  top${r} = max(top${r}, subgroupShuffleXor(top${r}, 1u));
  top${r} = max(top${r}, subgroupShuffleXor(top${r}, 2u));
  if (row${r} < count) {
    let token = token_at(first + row${r});
    let there = ${entering ? `token.z >= ${form.exact!.window + form.exact!.sinks}u` : 'true'};
    let out = ((token.x * ${count}u + head) * ${width}u + member) / 2u;
${blocks
  .flatMap((b) =>
    eight.map((j) => {
      const name = own(r, b, j);
      const word = (sign: string) => `select(0u, pack2x16float(exp(${sign}${name} - top${r})), there)`;
      return `    phi[out + ${32 * b + 4 * j}u] = ${word('')};\n    phi[out + ${half / 2 + 32 * b + 4 * j}u] = ${word('-')};`;
    }),
  )
  .join('\n')}
  }`,
  )
  .join('\n')}`,
  });
}

/** WGSL of features_of: two neighbouring features of a head of an item, turned as the states want them. */
function sourceOf({ heads, form }: DualShape, of: 'query' | 'key'): string {
  const { headDim, rope, ropeInState, kvHeads } = form;
  const count = of === 'query' ? heads : kvHeads;
  const word = (from: string, base: string) => `unpack2x16float(${from}[(${base} + c) / 2u])`;
  const turned = (from: string, base: string, position: string, direction: string) =>
    [0, 1]
      .map(
        (e) =>
          `turn(own.${'xy'[e]}, half_of(${from}[(${base} + partner(c + ${e}u)) / 2u], partner(c + ${e}u)), c + ${e}u, ${position}, ${direction})`,
      )
      .join(', ');
  const step = (base: string, position: string) =>
    rope && ropeInState
      ? `let own = ${word('x', base)};\n    return vec2f(${turned('x', base, position, '1.0')});`
      : `return ${word('x', base)};`;
  const halfOf = 'fn half_of(word: u32, c: u32) -> f32 { return unpack2x16float(word)[c % 2u]; }\n';
  if (of === 'query' || !form.exact)
    return `${halfOf}fn features_of(item: u32, head: u32, c: u32) -> vec2f {
  let token = token_at(item);
  let base = (token.x * ${count}u + head) * ${headDim}u;
  ${step('base', 'token.z')}
}`;
  const ring =
    rope && !ropeInState
      ? `let own = ${word('ring', 'ring_base')};\n    return vec2f(${turned('ring', 'ring_base', 'entering', '-1.0')});`
      : `return ${word('ring', 'ring_base')};`;
  return `${halfOf}fn features_of(item: u32, head: u32, c: u32) -> vec2f {
  let token = token_at(item);
${enteringToken(form)}
  if (in_ring) {
    let ring_base = ((row.x * ${count}u + head) * ${entriesOf(form)}u + entry) * ${headDim}u;
    ${ring}
  }
  let base = (step_index * ${count}u + head) * ${headDim}u;
  ${step('base', 'entering')}
}`;
}
