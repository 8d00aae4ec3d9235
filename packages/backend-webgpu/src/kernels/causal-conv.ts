import type { NodeOf } from '@dsla/spec';
import { activationFunctions, activationName, elementwiseSize, type Shape } from './elementwise.js';
import { type Element, type Kernel, type KernelParts, kernel, logFunctions } from './kernel.js';

/** Elements from slot to slot: WebGPU copies and clears multiples of four bytes. */
function slotStride(width: number, taps: number, state: Element): number {
  const own = width * (taps - 1);
  return state === 'f16' ? own + (own % 2) : own;
}

/** The input, the taps and where there is one the bias. */
function operands(x: Shape, bias: boolean): KernelParts['buffers'] {
  return { x: [x.type, 'read'], w: ['f32', 'read'], ...(bias && { bias: ['f32', 'read'] as const }) };
}

/** y_t = f(b + sum_j w_j x_{t-K+1+j}); what lies before the step is in state [slots, channels, K-1], oldest first, a slot padded to four bytes. */
export function causalConv(
  y: Shape,
  x: Shape,
  taps: number,
  state: Element,
  bias: boolean,
  fn?: NodeOf<'activate'>['fn'],
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
  let channel = i % ${width}u;
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
