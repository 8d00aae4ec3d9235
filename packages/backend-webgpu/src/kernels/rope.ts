import type { Rope } from '@dsla/spec';
import { elementwiseSize, type Shape } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';
import { eightFunctions } from './matrices.js';
import { loadType } from './vector-options.js';

/** WGSL of the feature that another one turns with. Without branches, as all here: a load in one waits for those before. */
function partnerFunction({ rotaryDim }: Rope): string {
  const half = rotaryDim / 2;
  return `fn partner(c: u32) -> u32 {
  return select(c, select(c - ${half}u, c + ${half}u, c < ${half}u), c < ${rotaryDim}u);
}`;
}

/** WGSL to rotate a feature of a head by the table `rope` [positions, rotaryDim/2] of (cos, sin); direction -1 undoes it. */
export function ropeFunctions(rope: Rope): string {
  const half = rope.rotaryDim / 2;
  return `${partnerFunction(rope)}
fn turn(own: f32, other: f32, c: u32, position: u32, direction: f32) -> f32 {
  let t = rope[position * ${half}u + c % ${half}u];
  let turned = own * t.x + select(direction, -direction, c < ${half}u) * other * t.y;
  return select(own, turned, c < ${rope.rotaryDim}u);
}`;
}

export const ropeBuffer: { readonly rope: readonly ['vec2f', 'read'] } = { rope: ['vec2f', 'read'] };

/** Features that a thread turns or copies: eight of a result in float16, where they and their partners are neighbours. */
export function featuresAThread(rope: Rope | undefined, headDim: number, type: Element): 1 | 8 {
  const neighbours = headDim % 8 === 0 && turnsByFours(rope, 8);
  return neighbours && type === 'f16' ? 8 : 1;
}

export const ropeEights: { readonly rope: readonly ['vec4f', 'read'] } = { rope: ['vec4f', 'read'] };

/** Whether the partners of a load of `width` features are one load too, so that turnFours can turn them. */
export function turnsByFours(rope: Rope | undefined, width: number): boolean {
  return rope === undefined || rope.rotaryDim % (2 * width) === 0;
}

/** As ropeFunctions, for four features from c on and their partners. */
export function turnFours(rope: Rope): string {
  const half = rope.rotaryDim / 2;
  return `${partnerFunction(rope)}
fn turn_four(own: vec4f, other: vec4f, c: u32, position: u32, direction: f32) -> vec4f {
  let at = (position * ${half}u + c % ${half}u) / 2u;
  let low = rope[at]; // of two features: cos, sin, cos, sin
  let high = rope[at + 1u];
  let sign = select(direction, -direction, c < ${half}u);
  let turned = own * vec4f(low.xz, high.xz) + sign * other * vec4f(low.yw, high.yw);
  return select(own, turned, c < ${rope.rotaryDim}u);
}`;
}

/** The same for eight, in float16. */
export function turnEights(rope: Rope): string {
  return `${eightFunctions}
${turnFours(rope)}
fn turn_eight(own: vec4u, other: vec4u, c: u32, position: u32, direction: f32) -> vec4u {
  let low = turn_four(low_of(own), low_of(other), c, position, direction);
  let high = turn_four(high_of(own), high_of(other), c + 4u, position, direction);
  return eight_of(low, high);
}`;
}

/** Element types of queries and keys before they are turned. */
export interface QueryKeyTypes {
  readonly q: Element;
  readonly k: Element;
}

/** WGSL of the eight features at `at` (in eights) of a buffer in type x, in float16: one load of float16, or two of float32. */
export function eightAt(name: string, x: Element, at: string): string {
  return x === 'f16' ? `${name}[${at}]` : `eight_of(${name}[2u * (${at})], ${name}[2u * (${at}) + 1u])`;
}

/** The same of features from c of a head on that begins at `base`, turned; with turnEights. */
export function turnedEightAt(name: string, x: Element, base: string, position: string, direction = '1.0'): string {
  const [own, other] = [`${base} + c / 8u`, `${base} + partner(c) / 8u`];
  if (x === 'f16') return `turn_eight(${name}[${own}], ${name}[${other}], c, ${position}, ${direction})`;
  const four = (n: number) => {
    const [a, b] = [own, other].map((at) => `${name}[2u * (${at}) + ${n}u]`);
    return `turn_four(${a}, ${b}, c + ${4 * n}u, ${position}, ${direction})`;
  };
  return `eight_of(${four(0)}, ${four(1)})`;
}

/** y [tokens, heads*headDim]: every head of x turned by its token's position, featuresAThread at a time. */
export function rotate(rope: Rope, headDim: number, y: Shape, x: Element): Kernel {
  if (featuresAThread(rope, headDim, y.type) === 8) return rotateEights(rope, headDim, y.width, x);
  return kernel({
    name: 'rotate',
    buffers: { x: [x, 'read'], ...ropeBuffer, y: [y.type, 'write'] },
    module: ropeFunctions(rope),
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${y.width}u) { return; }
  let token = token_at(i / ${y.width}u);
  let feature = i % ${y.width}u;
  let c = feature % ${headDim}u;
  let base = token.x * ${y.width}u;
  let other = f32(x[base + feature - c + partner(c)]);
  y[base + feature] = ${y.type}(turn(f32(x[base + feature]), other, c, token.z, 1.0));`,
  });
}

function rotateEights(rope: Rope, headDim: number, width: number, x: Element): Kernel {
  const eights = width / 8;
  return kernel({
    name: 'rotate',
    buffers: { x: [loadType(x), 'read'], ...ropeEights, y: ['vec4u', 'write'] },
    module: turnEights(rope),
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${eights}u) { return; }
  let token = token_at(i / ${eights}u);
  let c = i % ${headDim / 8}u * 8u;
  let at = token.x * ${eights}u + i % ${eights}u;
  let base = at - c / 8u;
  y[at] = ${turnedEightAt('x', x, 'base', 'token.z')};`,
  });
}
