import {
  type DualShape,
  enteringToken,
  entriesOf,
  type FeaturesOf,
  ringOf,
  turnDirection,
} from './dual-linear-attention.js';
import { type Element, type Kernel, kernel, tileTokens, upTo } from './kernel.js';
import {
  eightFunctions,
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
import { eightAt, featuresAThread, ropeEights, turnEights, turnedEightAt } from './rope.js';
import { loadType } from './vector-options.js';

const scorePitch = scorePitchOf(tileTokens);
const [two, four] = [upTo(2), upTo(4)];

/** Whether the kernel can be used: features in tiles of 64, and heads that are turned by eight features. */
export function featureTileable({ form, width }: DualShape): boolean {
  const { headDim, rope } = form;
  const eights = featuresAThread(rope, headDim, 'f16') === 8;
  return eights && (width / 2) % 64 === 0 && headDim % 16 === 0 && headDim <= 128;
}

/**
 * As `features` of dual-linear-attention.ts, in float16 (but x) by subgroup matrices: one workgroup a head and 64 tokens of the
 * step, whatever their rows; 16 tokens a subgroup, which in the end have four lanes each.
 */
export function featureTiles(shape: DualShape, of: FeaturesOf, x: Element): Kernel {
  const { form, width } = shape;
  const { headDim, rope, ropeInState } = form;
  const entering = isEntering(shape, of);
  const turns = rope !== undefined && (ropeInState || entering);
  const pitch = pitchOf(headDim);
  const [deep, blocks] = [upTo(headDim / 16), upTo(width / 128)];
  const token = (line: string, eight: string) => `features_of(first + min(${line}, count - 1u), head, 8u * ${eight})`;
  // Loads of the ring in a pass of their own: elsewhere nothing waits for a branch.
  const kept = `    for (var e = lane; e < ${(tileTokens * headDim) / 8}u; e += ${stageSize}u) {
      let line = e / ${headDim / 8}u;
      let eight = e % ${headDim / 8}u;
      let item = first + min(line, count - 1u);
      if (from_ring(item)) { store_rows(line * ${pitch}u + eight * 8u, kept_of(item, head, 8u * eight)); }
    }`;
  return kernel({
    name: `feature-tiles-${of}`,
    buffers: {
      x: [loadType(x), 'read'],
      w: ['vec4u', 'read'],
      ...(turns ? ropeEights : {}),
      ...(entering ? { ring: ['vec4u', 'read'] as const } : {}),
      phi: ['vec4u', 'write'],
    },
    matrices: true,
    module: `${matrixTypes}
${turns ? turnEights(rope) : eightFunctions}
${entering ? ringOf(form) : ''}
${halves('rows', tileTokens * Math.max(pitch, 2 * scorePitch))} // tokens, weights, [tokens, 64 features] in float32
${sourceOf(shape, of, x)}`,
    size: stageSize,
    main: `  let first = group.x * ${tileTokens}u;
  let count = min(${tileTokens}u, batch[0].y - first);
  let head = group.y;
  let subgroup = lane / 32u;
  let own = lane % 32u;
  let member = own % 4u * 8u;
${stage('rows', headDim, pitch, token)}${entering ? `\n${kept}` : ''}
  workgroupBarrier();
${deep.map((d) => `  let x${d} = ${load('Left', 'row', 'rows', `subgroup * ${16 * pitch}u + ${16 * d}u`, pitch)};`).join('\n')}
${two.map((r) => `  let row${r} = subgroup * 16u + ${8 * r}u + own / 4u;\n  var highest${r} = vec4f();`).join('\n')}
${blocks.map((b) => product(shape, b)).join('\n')}
${two.map((r) => write(shape, of, r)).join('\n')}`,
  });
}

/** Whether keys also come from a ring. */
function isEntering({ form }: DualShape, of: FeaturesOf): boolean {
  return of !== 'query' && form.exact !== undefined;
}

/** WGSL of the name of four of a block of 64 features of one of a lane's rows. */
const fourOf = (r: number, b: number, j: number): string => `y${r}_${b}_${j}`;

/** WGSL that multiplies the tokens by the weights of a block of 64 features: fourOf, and the highest so far. */
function product({ form, width }: DualShape, b: number): string {
  const { headDim } = form;
  const pitch = pitchOf(headDim);
  const deep = upTo(headDim / 16);
  const weight = (line: string, eight: string) =>
    `w[(head * ${width / 2}u + ${64 * b}u + ${line}) * ${headDim / 8}u + ${eight}]`;
  const quads = four.map((j) => ({ j, at: 32 * (j >> 1) + 4 * (j & 1) }));
  return `  workgroupBarrier();
${stage('rows', headDim, pitch, weight)}
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
    workgroupBarrier();
${four.map((k) => `    ${storeSums('rows', `subgroup * ${16 * scorePitch}u + ${16 * k}u`, `s${k}`, scorePitch)}`).join('\n')}
  }
  workgroupBarrier();
${two
  .flatMap((r) =>
    quads.map(({ j, at }) => {
      const name = fourOf(r, b, j);
      return `  let ${name} = bitcast<vec4f>(rows[(row${r} * ${scorePitch}u + member + ${at}u) / 4u]);\n  highest${r} = max(highest${r}, abs(${name}));`;
    }),
  )
  .join('\n')}`;
}

/** WGSL that writes phi of one of a lane's rows: e to the power of every feature and of its negative, less the highest of all. */
function write(shape: DualShape, of: FeaturesOf, r: number): string {
  const { heads, form, width } = shape;
  const count = of === 'query' ? heads : form.kvHeads;
  const half = width / 2;
  const entering = isEntering(shape, of);
  return `  var top${r} = max(max(highest${r}.x, highest${r}.y), max(highest${r}.z, highest${r}.w));
  top${r} = max(top${r}, subgroupShuffleXor(top${r}, 1u));
  top${r} = max(top${r}, subgroupShuffleXor(top${r}, 2u));
  if (row${r} < count) {
    let token = token_at(first + row${r});
    let there = ${entering ? `token.z >= ${form.exact!.window + form.exact!.sinks}u` : 'true'};
    let out = ((token.x * ${count}u + head) * ${width}u + member) / 8u;
${upTo(half / 64)
  .flatMap((b) =>
    [0, 1].flatMap((pair) =>
      (['', '-'] as const).map((sign) => {
        const power = (j: number) => `exp(${sign}${fourOf(r, b, j)} - top${r})`;
        const eight = `eight_of(${power(2 * pair)}, ${power(2 * pair + 1)})`;
        const at = 8 * b + 4 * pair + (sign === '' ? 0 : half / 8);
        return `    phi[out + ${at}u] = select(vec4u(), ${eight}, there);`;
      }),
    ),
  )
  .join('\n')}
  }`;
}

/** WGSL of features_of: eight neighbouring features of a head of an item, turned as the states want them; kept_of: from the ring. */
function sourceOf({ heads, form }: DualShape, of: FeaturesOf, x: Element): string {
  const { headDim, kvHeads } = form;
  const count = of === 'query' ? heads : kvHeads;
  const eights = headDim / 8;
  const read = (from: string, type: Element, turned: boolean, position: string) => {
    const direction = turnDirection(form, turned);
    return direction ? turnedEightAt(from, type, 'base', position, direction) : eightAt(from, type, 'base + c / 8u');
  };
  const step = (position: string) => read('x', x, of === 'turned-key', position);
  if (of === 'query' || !form.exact)
    return `fn features_of(item: u32, head: u32, c: u32) -> vec4u {
  let token = token_at(item);
  let base = (token.x * ${count}u + head) * ${eights}u;
  return ${step('token.z')};
}`;
  return `fn features_of(item: u32, head: u32, c: u32) -> vec4u {
  let token = token_at(item);
${enteringToken(form)}
  let base = (step_index * ${count}u + head) * ${eights}u;
  return ${step('entering')};
}
fn from_ring(item: u32) -> bool {
  let token = token_at(item);
${enteringToken(form)}
  return in_ring;
}
fn kept_of(item: u32, head: u32, c: u32) -> vec4u {
  let token = token_at(item);
${enteringToken(form)}
  let base = ((row.x * ${count}u + head) * ${entriesOf(form)}u + entry) * ${eights}u;
  return ${read('ring', 'f16', true, 'entering')};
}`;
}
