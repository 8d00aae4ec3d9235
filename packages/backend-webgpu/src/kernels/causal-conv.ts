import type { NodeOf } from '@dsla/spec';
import { activationFunctions, activationName, elementwiseSize, type Shape } from './elementwise.js';
import {
  type Element,
  type Kernel,
  type KernelParts,
  kernel,
  logFunctions,
  shortRow,
  tileTokens,
  upTo,
} from './kernel.js';
import { eightFunctions } from './matrices.js';

/** Elements from slot to slot: WebGPU copies and clears multiples of four bytes. */
function slotStride(width: number, taps: number, state: Element): number {
  const own = width * (taps - 1);
  return state === 'f16' ? own + (own % 2) : own;
}

/** The input, the taps and where there is one the bias. */
function operands(x: Shape, bias: boolean): KernelParts['buffers'] {
  return { x: [x.type, 'read'], w: ['f32', 'read'], ...(bias && { bias: ['f32', 'read'] as const }) };
}

/**
 * y_t = f(b + sum_j w_j x_{t-K+1+j}); what lies before the step is in state [slots, channels, K-1], oldest first, a slot padded to
 * four bytes. With `shortOnly` it leaves the tokens of long rows to convTiles.
 */
export function causalConv(
  y: Shape,
  x: Shape,
  taps: number,
  state: Element,
  bias: boolean,
  fn?: NodeOf<'activate'>['fn'],
  shortOnly = false,
): Kernel {
  const { width } = x;
  return kernel({
    name: fn ? `causal-conv-${fn}` : 'causal-conv',
    buffers: { ...operands(x, bias), state: [state, 'read'], y: [y.type, 'write'] },
    module: fn ? logFunctions + activationFunctions : '',
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width}u) { return; }
  let token = token_at(i / ${width}u);
  let row = row_at(token.y);
${shortOnly ? `  if (row.w > ${shortRow}u) { return; }\n` : ''}  let channel = i % ${width}u;
  let t = token.x - row.z;
  var sum = ${bias ? 'bias[channel]' : '0.0'};
  for (var j = 0u; j < ${taps}u; j++) {
    var input = 0.0;
    if (t + j >= ${taps - 1}u) { input = f32(x[(token.x + j - ${taps - 1}u) * ${width}u + channel]); }
    else { input = f32(state[row.x * ${slotStride(width, taps, state)}u + channel * ${taps - 1}u + t + j]); }
    sum += w[channel * ${taps}u + j] * input;
  }
  y[token.x * ${width}u + channel] = ${y.type}(${fn ? `${activationName[fn]}(sum)` : 'sum'});`,
  });
}

/** Channels and tokens of a thread of convTiles, tokens that it loads at once, and threads side by side. */
const [together, stretch, ahead, side] = [8, 32, 4, 64];

/** Whether there is convTiles for values of this kind. */
export function convTileable(x: Shape, y: Shape): boolean {
  return x.type === 'f16' && y.type === 'f16' && x.width % together === 0;
}

/** Workgroups along the channels. */
export function convGroups({ width }: Shape): number {
  return Math.ceil(width / together / side);
}

/** The two fours of the channels of a thread. */
const halves = [
  { name: 'low', first: 0 },
  { name: 'high', first: 4 },
];

/** WGSL of four channels' values as a vector. */
const four = (of: (channel: number) => string, first: number) =>
  `vec4f(${upTo(4)
    .map((e) => of(first + e))
    .join(', ')})`;

/** Whether all taps of a channel are one load. */
const tapsAtOnce = (taps: number): boolean => taps === 4;

/** causalConv of long rows: [convGroups, tiles]. A thread goes through some tokens of a tile with its taps at hand. */
export function convTiles(
  x: Shape,
  taps: number,
  state: Element,
  bias: boolean,
  fn?: NodeOf<'activate'>['fn'],
): Kernel {
  const { width } = x;
  const past = taps - 1;
  const eights = width / together;
  const sum = (name: string) =>
    `b_${name} + ${upTo(taps)
      .map((j) => `w_${name}${j} * x_${name}${j}`)
      .join(' + ')}`;
  const value = (name: string) =>
    fn
      ? `vec4f(${upTo(4)
          .map((e) => `${activationName[fn]}(${name}[${e}])`)
          .join(', ')})`
      : name;
  return kernel({
    name: fn ? `conv-tiles-${fn}` : 'conv-tiles',
    buffers: {
      x: ['vec4u', 'read'],
      w: [tapsAtOnce(taps) ? 'vec4f' : 'f32', 'read'],
      ...(bias && { bias: ['f32', 'read'] as const }),
      state: [state, 'read'],
      y: ['vec4u', 'write'],
    },
    module: `${fn ? logFunctions + activationFunctions : ''}\n${eightFunctions}`,
    size: side * (tileTokens / stretch),
    main: `  let tile = tile_at(group.y);
  let row = row_at(tile.x);
  let eight = group.x * ${side}u + lane % ${side}u;
  let begin = tile.y + lane / ${side}u * ${stretch}u;
  let end = min(begin + ${stretch}u, tile.y + tile.z);
  if (eight >= ${eights}u) { return; }
  let channel = eight * ${together}u;
${tapsOf(taps, bias)}
${pastOf(x, taps, state)}
  for (var t = begin; t < end; t += ${ahead}u) {
${upTo(ahead)
  .map((u) => `    let own${u} = x[(row.z + min(t + ${u}u, end - 1u)) * ${eights}u + eight];`)
  .join('\n')}
${upTo(ahead)
  .map(
    (u) => `    if (t + ${u}u < end) {
      x_low${past} = low_of(own${u});
      x_high${past} = high_of(own${u});
      let low = ${sum('low')};
      let high = ${sum('high')};
      y[(row.z + t + ${u}u) * ${eights}u + eight] = eight_of(${value('low')}, ${value('high')});
${upTo(past)
  .map((j) => `      x_low${j} = x_low${j + 1};\n      x_high${j} = x_high${j + 1};`)
  .join('\n')}
    }`,
  )
  .join('\n')}
  }`,
  });
}

/** WGSL that loads taps and bias of a thread's channels, and declares what the taps meet. */
function tapsOf(taps: number, bias: boolean): string {
  const wide = tapsAtOnce(taps);
  const tap = (e: number, j: number) => (wide ? `taps${e}[${j}]` : `w[(channel + ${e}u) * ${taps}u + ${j}u]`);
  return [
    ...upTo(wide ? together : 0).map((e) => `  let taps${e} = w[channel + ${e}u];`),
    ...halves.flatMap(({ name, first }) => [
      ...upTo(taps).map((j) => `  let w_${name}${j} = ${four((e) => tap(e, j), first)};`),
      `  let b_${name} = ${bias ? four((e) => `bias[channel + ${e}u]`, first) : 'vec4f()'};`,
      ...upTo(taps).map((j) => `  var x_${name}${j} = vec4f();`),
    ]),
  ].join('\n');
}

/** WGSL that finds what comes before a stretch: among the tokens of the row, or in the state. */
function pastOf({ width }: Shape, taps: number, state: Element): string {
  const past = taps - 1;
  const eights = width / together;
  return upTo(past)
    .map(
      (j) => `  if (begin + ${j}u >= ${past}u) {
    let old = x[(row.z + begin + ${j}u - ${past}u) * ${eights}u + eight];
    x_low${j} = low_of(old);
    x_high${j} = high_of(old);
  } else {
    let at = row.x * ${slotStride(width, taps, state)}u + channel * ${past}u + begin + ${j}u;
${halves.map(({ name, first }) => `    x_${name}${j} = ${four((e) => `f32(state[at + ${e * past}u])`, first)};`).join('\n')}
  }`,
    )
    .join('\n');
}

/** causalConv and convState of rows of one token each, at once. */
export function convToken(
  y: Shape,
  x: Shape,
  taps: number,
  state: Element,
  bias: boolean,
  fn?: NodeOf<'activate'>['fn'],
): Kernel {
  const { width } = x;
  const past = taps - 1;
  return kernel({
    name: fn ? `conv-token-${fn}` : 'conv-token',
    buffers: { ...operands(x, bias), state: [state, 'write'], y: [y.type, 'write'] },
    module: fn ? logFunctions + activationFunctions : '',
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width}u) { return; }
  let token = token_at(i / ${width}u);
  let channel = i % ${width}u;
  let base = row_at(token.y).x * ${slotStride(width, taps, state)}u + channel * ${past}u;
  let input = x[token.x * ${width}u + channel];
  var sum = ${bias ? 'bias[channel]' : '0.0'} + w[channel * ${taps}u + ${past}u] * f32(input);
  for (var j = 0u; j < ${past}u; j++) {
    let old = state[base + j];
    sum += w[channel * ${taps}u + j] * f32(old);
    if (j > 0u) { state[base + j - 1u] = old; }
  }
  state[base + ${past - 1}u] = ${state}(input);
  y[token.x * ${width}u + channel] = ${y.type}(${fn ? `${activationName[fn]}(sum)` : 'sum'});`,
  });
}

export const convSize = 64;

/** Moves the state on by the tokens of every row. */
export function convState(x: Shape, taps: number, state: Element): Kernel {
  const { width } = x;
  const past = taps - 1;
  return kernel({
    name: 'conv-state',
    buffers: { x: [x.type, 'read'], state: [state, 'write'] },
    size: convSize,
    main: `  let row = row_at(group.y);
  let channel = group.x * ${convSize}u + lane;
  if (channel >= ${width}u) { return; }
  let base = row.x * ${slotStride(width, taps, state)}u + channel * ${past}u;
  // Ascending: entry i reads entry i + count or a new token.
  for (var i = 0u; i < ${past}u; i++) {
    if (row.w + i >= ${past}u) {
      state[base + i] = ${state}(x[(row.z + row.w + i - ${past}u) * ${width}u + channel]);
    } else { state[base + i] = state[base + i + row.w]; }
  }`,
  });
}
