import type { DualForm } from '@dsla/spec';
import { ringFunction } from './cache.js';
import { elementwiseSize } from './elementwise.js';
import {
  type Element,
  float,
  type Kernel,
  type KernelParts,
  kernel,
  logFunctions,
  reductions,
  shortRow,
} from './kernel.js';
import { ropeBuffer, ropeFunctions } from './rope.js';

// The *entering stream* is what the states take in: token p itself, or with an exact part the token p - window, which lies in
// the ring or earlier in the same step. Short rows go token by token (dual-arrive.ts, recur.ts), long rows in stages, each over
// all their tokens:
//   enter      log decays and values of the entering stream
//   features   phi of the queries; phi of the entering keys
//   chunks     (dual-chunks.ts, dual-matrices.ts) move the states on and read them: sums [tokens, heads, columns]
//   finish     divides, or joins with the exact part (softmax-attention.ts), and norms

export interface DualShape {
  readonly heads: number;
  readonly form: DualForm;
  /** Width of phi. */
  readonly width: number;
  readonly type: Element;
}

/** Columns of a state: headDim, and one for the normaliser. */
export function columnsOf(form: DualForm): number {
  return form.headDim + (form.normaliser ? 1 : 0);
}

export function gateColumns({ states, kvHeads, headDim, gate }: DualForm): number {
  return states * kvHeads * (gate === 'vector' ? headDim : 1);
}

/** WGSL that finds the token entering at `token`: `entering` (its position), `valid`, `in_ring`, `step_index`, `entry`. */
export function enteringToken(form: DualForm): string {
  const { window, sinks } = form.exact!;
  return `  let row = row_at(token.y);
  let valid = token.z >= ${window + sinks}u;
  let entering = select(0u, token.z - ${window}u, valid);
  let in_ring = entering < row.y;
  let step_index = row.z + select(entering - row.y, 0u, in_ring);
  let entry = ring_index(entering);`;
}

export const entriesOf = (form: DualForm): number => form.exact!.sinks + form.exact!.window;
export const ringOf = (form: DualForm): string => ringFunction({ size: form.exact!.window, sinks: form.exact!.sinks });

/** Buffers of log_decay. */
export function gateBuffers({ form, type }: DualShape): KernelParts['buffers'] {
  return { gates: [type, 'read'], ...(form.exact ? { ring: ['f32', 'read'] as const } : {}) };
}

/** WGSL of log_decay(token, g): the log decay of gate g as the token enters, 0 where none does. */
export function logDecayFunction({ form }: DualShape): string {
  const width = gateColumns(form);
  const value = `log_sigmoid(logit) / ${float(form.temperature)}`;
  const body = form.exact
    ? `${enteringToken(form)}
  var logit = 0.0;
  if (in_ring) { logit = ring[(row.x * ${entriesOf(form)}u + entry) * ${width}u + g]; }
  else { logit = f32(gates[step_index * ${width}u + g]); }
  return select(0.0, ${value}, valid);`
    : `  let logit = f32(gates[token.x * ${width}u + g]);
  return ${value};`;
  return `${logFunctions}
${form.exact ? ringOf(form) : ''}
fn log_decay(token: vec4u, g: u32) -> f32 {
${body}
}`;
}

/** Numbers that a thread of enteringValues copies: eight or two neighbours in float16, where a head has whole ones. */
export function valuesAThread({ form, type }: DualShape): 1 | 2 | 8 {
  if (type === 'f32' || form.headDim % 2 !== 0) return 1;
  return form.headDim % 8 === 0 ? 8 : 2;
}

/**
 * entered [tokens, kvHeads*headDim]: values of the tokens that enter; anything where none does, since its phi is 0. A copy,
 * valuesAThread at a time.
 */
export function enteringValues(shape: DualShape): Kernel {
  const { form, type } = shape;
  const together = valuesAThread(shape);
  const word = { 1: type, 2: 'u32', 8: 'vec4u' }[together];
  const headDim = form.headDim / together;
  const { kvHeads } = form;
  const width = kvHeads * headDim;
  return kernel({
    name: 'entering-values',
    buffers: { v: [word, 'read'], ring: [word, 'read'], entered: [word, 'write'] },
    module: ringOf(form),
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width}u) { return; }
  let token = token_at(i / ${width}u);
  let feature = i % ${width}u;
${enteringToken(form)}
  var value = ${word}();
  if (valid && in_ring) {
    value = ring[((row.x * ${kvHeads}u + feature / ${headDim}u) * ${entriesOf(form)}u + entry) * ${headDim}u
      + feature % ${headDim}u];
  } else if (valid) { value = v[step_index * ${width}u + feature]; }
  entered[token.x * ${width}u + feature] = value;`,
  });
}

/** WGSL of the direction in which queries or keys turn on their way into a state; none where they are as it takes them. */
export function turnDirection({ rope, ropeInState }: DualForm, turned: boolean): string | undefined {
  if (!rope || ropeInState === turned) return undefined;
  return ropeInState ? '1.0' : '-1.0';
}

const featureSize = 64;

/** What features are of: queries or keys before rotation, or keys after it. */
export type FeaturesOf = 'query' | 'key' | 'turned-key';

/**
 * phi [tokens, heads, 2F] of x [tokens, heads*headDim] of type `x`, weight [heads, F, headDim]. `of`: the queries, or the keys that
 * enter (with an exact part also from the ring of turned keys; 0 where none enters).
 */
export function features({ heads, form, width, type }: DualShape, of: FeaturesOf, x: Element): Kernel {
  const { headDim, rope, ropeInState, kvHeads } = form;
  const count = of === 'query' ? heads : kvHeads;
  const entering = of !== 'query' && form.exact !== undefined;
  const turns = rope !== undefined && (ropeInState || entering);
  const half = width / 2;
  const read = (from: string, base: string, turned: boolean, position: string) => {
    const direction = turnDirection(form, turned);
    const own = `f32(${from}[${base} + c])`;
    return direction ? `turn(${own}, f32(${from}[${base} + partner(c)]), c, ${position}, ${direction})` : own;
  };
  const step = (position: string) => read('x', 'base', of === 'turned-key', position);
  return kernel({
    name: `features-${of}`,
    buffers: {
      x: [x, 'read'],
      w: [type, 'read'],
      ...(turns ? ropeBuffer : {}),
      ...(entering ? { ring: [type, 'read'] as const } : {}),
      phi: [type, 'write'],
    },
    module: `${turns ? ropeFunctions(rope) : ''}
${entering ? ringOf(form) : ''}
${reductions(featureSize)}
var<workgroup> vector: array<f32, ${headDim}>;`,
    size: featureSize,
    main: `  let token = token_at(group.x);
  let head = group.y;
${
  entering
    ? `${enteringToken(form)}
  let ring_base = ((row.x * ${count}u + head) * ${entriesOf(form)}u + entry) * ${headDim}u;
  let base = (step_index * ${count}u + head) * ${headDim}u;
  for (var c = lane; c < ${headDim}u; c += ${featureSize}u) {
    if (in_ring) { vector[c] = ${read('ring', 'ring_base', true, 'entering')}; } else { vector[c] = ${step('entering')}; }
  }`
    : `  let valid = true;
  let base = (token.x * ${count}u + head) * ${headDim}u;
  for (var c = lane; c < ${headDim}u; c += ${featureSize}u) { vector[c] = ${step('token.z')}; }`
}
  workgroupBarrier();
  var y: array<f32, ${Math.ceil(half / featureSize)}>;
  var top = 0.0;
  for (var f = lane; f < ${half}u; f += ${featureSize}u) {
    let weight = (head * ${half}u + f) * ${headDim}u;
    var sum = 0.0;
    for (var c = 0u; c < ${headDim}u; c++) { sum += f32(w[weight + c]) * vector[c]; }
    y[f / ${featureSize}u] = sum;
    top = max(top, abs(sum));
  }
  top = max_all(top, lane);
  let out = (token.x * ${count}u + head) * ${width}u;
  for (var f = lane; f < ${half}u; f += ${featureSize}u) {
    let value = y[f / ${featureSize}u];
    phi[out + f] = ${type}(select(0.0, exp(value - top), valid));
    phi[out + ${half}u + f] = ${type}(select(0.0, exp(-value - top), valid));
  }`,
  });
}

export const columnBlock = 16;

/** WGSL of gamma = softmax(mix) for state i of a head. */
export function mixFunction(states: number, perHead: boolean): string {
  return `fn gamma(head: u32, i: u32) -> f32 {
  let base = ${perHead ? `head * ${states}u` : '0u'};
  var top = mix_logits[base];
  for (var n = 1u; n < ${states}u; n++) { top = max(top, mix_logits[base + n]); }
  var sum = 0.0;
  for (var n = 0u; n < ${states}u; n++) { sum += exp(mix_logits[base + n] - top); }
  return exp(mix_logits[base + i] - top) / sum;
}`;
}

const finishSize = 64;

/** y [tokens, heads*headDim] of long rows from sums: times scale, or divided by the normaliser; then the output norm. */
export function finish(
  { heads, form, type }: DualShape,
  scale: number,
  outputNorm: { readonly eps: number } | undefined,
): Kernel {
  const { headDim, normaliser } = form;
  const columns = columnsOf(form);
  const value = normaliser ? `sums[base + c] / sums[base + ${headDim}u]` : `sums[base + c] * ${float(scale)}`;
  return kernel({
    name: 'dual-finish',
    buffers: {
      sums: ['f32', 'read'],
      ...(outputNorm ? { norm: ['f32', 'read'] as const } : {}),
      y: [type, 'write'],
    },
    module: outputNorm ? reductions(finishSize) : '',
    size: finishSize,
    main: `  let token = token_at(group.x);
  if (row_at(token.y).w <= ${shortRow}u) { return; }
  let item = token.x * ${heads}u + group.y;
  let base = item * ${columns}u;
${
  outputNorm
    ? `  var squares = 0.0;
  for (var c = lane; c < ${headDim}u; c += ${finishSize}u) { let x = ${value}; squares += x * x; }
  let rms = inverseSqrt(sum_all(squares, lane) / ${float(headDim)} + ${float(outputNorm.eps)});`
    : ''
}
  for (var c = lane; c < ${headDim}u; c += ${finishSize}u) {
    y[item * ${headDim}u + c] = ${type}(${value}${outputNorm ? ' * rms * norm[c]' : ''});
  }`,
  });
}
