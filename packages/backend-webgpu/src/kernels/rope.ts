import type { Rope } from '@dsla/spec';
import { elementwiseSize, type Shape } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';
import { eightFunctions } from './matrices.js';

/** WGSL to rotate a feature of a head by the table `rope` [positions, rotaryDim/2] of (cos, sin); direction -1 undoes it. */
export function ropeFunctions({ rotaryDim }: Rope): string {
  const half = rotaryDim / 2;
  return `fn partner(c: u32) -> u32 {
  if (c < ${half}u) { return c + ${half}u; }
  if (c < ${rotaryDim}u) { return c - ${half}u; }
  return c;
}
fn turn(own: f32, other: f32, c: u32, position: u32, direction: f32) -> f32 {
  if (c >= ${rotaryDim}u) { return own; }
  let t = rope[position * ${half}u + c % ${half}u];
  return own * t.x + select(direction, -direction, c < ${half}u) * other * t.y;
}`;
}

export const ropeBuffer: { readonly rope: readonly ['vec2f', 'read'] } = { rope: ['vec2f', 'read'] };

/** Features that a thread turns or copies: eight in float16, where they and their partners are neighbours. */
export function featuresAThread(rope: Rope | undefined, headDim: number, ...types: readonly Element[]): 1 | 8 {
  const neighbours = headDim % 8 === 0 && (rope === undefined || rope.rotaryDim % 16 === 0);
  return neighbours && types.every((type) => type === 'f16') ? 8 : 1;
}

export const ropeEights: { readonly rope: readonly ['vec4f', 'read'] } = { rope: ['vec4f', 'read'] };

/** As ropeFunctions, for eight features from c on and their partners. */
export function turnEights({ rotaryDim }: Rope): string {
  const half = rotaryDim / 2;
  return `${eightFunctions}
fn partner(c: u32) -> u32 {
  if (c < ${half}u) { return c + ${half}u; }
  if (c < ${rotaryDim}u) { return c - ${half}u; }
  return c;
}
fn turn_eight(own: vec4u, other: vec4u, c: u32, position: u32, direction: f32) -> vec4u {
  if (c >= ${rotaryDim}u) { return own; }
  let at = (position * ${half}u + c % ${half}u) / 2u;
  let t = array(rope[at], rope[at + 1u], rope[at + 2u], rope[at + 3u]); // of two features each: cos, sin, cos, sin
  let sign = select(direction, -direction, c < ${half}u);
  let low = low_of(own) * vec4f(t[0].xz, t[1].xz) + sign * low_of(other) * vec4f(t[0].yw, t[1].yw);
  let high = high_of(own) * vec4f(t[2].xz, t[3].xz) + sign * high_of(other) * vec4f(t[2].yw, t[3].yw);
  return eight_of(low, high);
}`;
}

/** y [tokens, heads*headDim]: every head of x turned by its token's position, featuresAThread at a time. */
export function rotate(rope: Rope, headDim: number, y: Shape, x: Element): Kernel {
  if (featuresAThread(rope, headDim, x, y.type) === 8) return rotateEights(rope, headDim, y.width);
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

function rotateEights(rope: Rope, headDim: number, width: number): Kernel {
  const eights = width / 8;
  return kernel({
    name: 'rotate',
    buffers: { x: ['vec4u', 'read'], ...ropeEights, y: ['vec4u', 'write'] },
    module: turnEights(rope),
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${eights}u) { return; }
  let token = token_at(i / ${eights}u);
  let c = i % ${headDim / 8}u * 8u;
  let at = token.x * ${eights}u + i % ${eights}u;
  y[at] = turn_eight(x[at], x[at - c / 8u + partner(c) / 8u], c, token.z, 1.0);`,
  });
}
