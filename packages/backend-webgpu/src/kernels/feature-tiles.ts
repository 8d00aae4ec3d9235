import { type DualShape, enteringToken, entriesOf, ringOf } from './dual-linear-attention.js';
import { type Kernel, kernel, tileTokens } from './kernel.js';
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
  upTo,
} from './matrices.js';
import { ropeBuffer, ropeFunctions } from './rope.js';

const scorePitch = scorePitchOf(tileTokens);

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
  const [two, four, deep, blocks] = [upTo(2), upTo(4), upTo(headDim / 16), upTo(half / 64)];
  const own = (r: number, b: number, j: number) => `y${r}_${b}_${j}`;
  const weight = (b: number) => (line: string, eight: string) => {
    const at = `(head * ${half}u + ${64 * b}u + ${line}) * ${headDim / 4}u + ${eight} * 2u`;
    return `eight_of(w[${at}], w[${at} + 1u])`;
  };
  const token = (line: string, eight: string) =>
    `vec4u(${four.map((n) => `features_of(first + min(${line}, count - 1u), head, 8u * ${eight} + ${2 * n}u)`).join(', ')})`;
  const quads = four.map((j) => ({ j, at: 32 * (j >> 1) + 4 * (j & 1) }));
  return kernel({
    name: `feature-tiles-${of}`,
    buffers: {
      x: ['u32', 'read'],
      w: ['vec4f', 'read'],
      ...(turns ? ropeBuffer : {}),
      ...(entering ? { ring: ['u32', 'read'] as const } : {}),
      phi: ['vec4u', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${turns ? ropeFunctions(rope) : ''}
${entering ? ringOf(form) : ''}
${halves('rows', tileTokens * pitch)} // tokens, then weights
${fours('scores', tileTokens * scorePitch)} // [tokens, 64 features]
${eightFunctions}
${sourceOf(shape, of)}`,
    size: stageSize,
    main: `  let first = group.x * ${tileTokens}u;
  let count = min(${tileTokens}u, batch[0].y - first);
  let head = group.y;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let member = own % 4u * 8u;
${stage('rows', headDim, pitch, token)}
  workgroupBarrier();
${deep.map((d) => `  let x${d} = ${load('Left', 'row', 'rows', `subgroup * ${16 * pitch}u + ${16 * d}u`, pitch)};`).join('\n')}
${two.map((r) => `  let row${r} = subgroup * 16u + ${8 * r}u + own / 4u;\n  var highest${r} = vec4f();`).join('\n')}
${blocks
  .map(
    (b) => `  workgroupBarrier();
${stage('rows', headDim, pitch, weight(b))}
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
${four.map((k) => `    ${storeSums('scores', `subgroup * ${16 * scorePitch}u + ${16 * k}u`, `s${k}`, scorePitch)}`).join('\n')}
  }
  workgroupBarrier();
${two
  .flatMap((r) =>
    quads.map(({ j, at }) => {
      const name = own(r, b, j);
      return `  let ${name} = scores[(row${r} * ${scorePitch}u + member + ${at}u) / 4u];\n  highest${r} = max(highest${r}, abs(${name}));`;
    }),
  )
  .join('\n')}`,
  )
  .join('\n')}
${two
  .map(
    (r) => `  var top${r} = max(max(highest${r}.x, highest${r}.y), max(highest${r}.z, highest${r}.w));
  top${r} = max(top${r}, subgroupShuffleXor(top${r}, 1u));
  top${r} = max(top${r}, subgroupShuffleXor(top${r}, 2u));
  if (row${r} < count) {
    let token = token_at(first + row${r});
    let there = ${entering ? `token.z >= ${form.exact!.window + form.exact!.sinks}u` : 'true'};
    let out = ((token.x * ${count}u + head) * ${width}u + member) / 8u;
${blocks
  .flatMap((b) =>
    [0, 1].flatMap((pair) =>
      (['', '-'] as const).map((sign) => {
        const power = (j: number) => `exp(${sign}${own(r, b, j)} - top${r})`;
        const eight = `eight_of(${power(2 * pair)}, ${power(2 * pair + 1)})`;
        const at = 8 * b + 4 * pair + (sign === '' ? 0 : half / 8);
        return `    phi[out + ${at}u] = select(vec4u(), ${eight}, there);`;
      }),
    ),
  )
  .join('\n')}
  }`,
  )
  .join('\n')}`,
  });
}

/** WGSL of features_of: two neighbouring features of a head of an item in a word, turned as the states want them. */
function sourceOf({ heads, form }: DualShape, of: 'query' | 'key'): string {
  const { headDim, rope, ropeInState, kvHeads } = form;
  const count = of === 'query' ? heads : kvHeads;
  const word = (from: string, base: string) => `${from}[(${base} + c) / 2u]`;
  const turned = (from: string, base: string, position: string, direction: string) =>
    [0, 1]
      .map(
        (e) =>
          `turn(own.${'xy'[e]}, half_of(${from}[(${base} + partner(c + ${e}u)) / 2u], partner(c + ${e}u)), c + ${e}u, ${position}, ${direction})`,
      )
      .join(', ');
  const step = (base: string, position: string) =>
    rope && ropeInState
      ? `let own = unpack2x16float(${word('x', base)});\n    return pack2x16float(vec2f(${turned('x', base, position, '1.0')}));`
      : `return ${word('x', base)};`;
  const halfOf = 'fn half_of(word: u32, c: u32) -> f32 { return unpack2x16float(word)[c % 2u]; }\n';
  if (of === 'query' || !form.exact)
    return `${halfOf}fn features_of(item: u32, head: u32, c: u32) -> u32 {
  let token = token_at(item);
  let base = (token.x * ${count}u + head) * ${headDim}u;
  ${step('base', 'token.z')}
}`;
  const ring =
    rope && !ropeInState
      ? `let own = unpack2x16float(${word('ring', 'ring_base')});\n    return pack2x16float(vec2f(${turned('ring', 'ring_base', 'entering', '-1.0')}));`
      : `return ${word('ring', 'ring_base')};`;
  return `${halfOf}fn features_of(item: u32, head: u32, c: u32) -> u32 {
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
