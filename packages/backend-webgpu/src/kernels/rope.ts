import type { Rope } from '@dsla/spec';
import { elementwiseSize, type Shape } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';

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

/** Whether neighbours in float16 share a word with neighbours, and so do their partners. */
export function inWords({ rotaryDim }: Rope, headDim: number, ...types: readonly Element[]): boolean {
  return rotaryDim % 4 === 0 && headDim % 2 === 0 && types.every((type) => type === 'f16');
}

/** WGSL of two neighbours from feature c on: `own` and `other`, their partners, are vectors. */
export const turnWord = (own: string, other: string, position: string, direction: '1.0' | '-1.0' = '1.0'): string =>
  `vec2f(turn(${own}.x, ${other}.x, c, ${position}, ${direction}), turn(${own}.y, ${other}.y, c + 1u, ${position}, ${direction}))`;

/** y [tokens, heads*headDim]: every head of x turned by its token's position. */
export function rotate(rope: Rope, headDim: number, y: Shape, x: Element): Kernel {
  if (inWords(rope, headDim, x, y.type)) return rotateWords(rope, headDim, y.width);
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

/** Two neighbours a thread: half of the threads have nothing to do. */
function rotateWords(rope: Rope, headDim: number, width: number): Kernel {
  return kernel({
    name: 'rotate',
    buffers: { x: ['u32', 'read'], ...ropeBuffer, y: ['u32', 'write'] },
    module: ropeFunctions(rope),
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width / 2}u) { return; }
  let token = token_at(i / ${width / 2}u);
  let feature = i % ${width / 2}u * 2u;
  let c = feature % ${headDim}u;
  let base = token.x * ${width}u + feature;
  let own = unpack2x16float(x[base / 2u]);
  let other = unpack2x16float(x[(base - c + partner(c)) / 2u]);
  y[base / 2u] = pack2x16float(${turnWord('own', 'other', 'token.z')});`,
  });
}
