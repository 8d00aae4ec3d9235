import { type DualForm, gateWidth, type NodeOf, ringIndex } from '@dsla/spec';
import { rotate, rotated } from '../rope.js';
import type { Tensor } from '../tensor.js';
import { logSigmoid } from './activate.js';
import { dot } from './linear.js';
import { rmsNorm } from './norm.js';
import { addWeighted, load, softmaxWeights, store, tokenOf, visible } from './softmax-attention.js';

export interface DualWeights {
  /** [1 | heads, states] */
  readonly mix: Tensor;
  /** [heads, F, headDim] */
  readonly query?: Tensor | undefined;
  /** [kvHeads, F, headDim] */
  readonly key?: Tensor | undefined;
  /** [heads] */
  readonly logWeight?: Tensor | undefined;
  /** [headDim] */
  readonly outputNorm?: Tensor | undefined;
}

export interface DualMemory {
  /** [states, kvHeads, features, headDim (+ 1)] */
  readonly state: Float64Array;
  /** What an exact part keeps: keys (rotated) and values [kvHeads, sinks + window, headDim], gates [sinks + window, gate width]. */
  readonly exact?: { readonly keys: Float64Array; readonly values: Float64Array; readonly gates: Float64Array };
}

/** The parts of a state as dualState lays them out. */
export function dualMemory(parts: readonly Float64Array[]): DualMemory {
  const [state, keys, values, gates] = parts;
  return keys && values && gates ? { state: state!, exact: { keys, values, gates } } : { state: state! };
}

type Settings = Pick<NodeOf<'dualLinearAttention'>, 'heads' | 'scale' | 'form' | 'outputNorm'>;

/**
 * One row: q [count, heads*headDim], k and v [count, kvHeads*headDim], gates [count, gate width], the tokens `past`,
 * past + 1, ... of the row. Returns [count, heads*headDim] and moves the memory on.
 */
export function dualLinearAttention(
  node: Settings,
  weights: DualWeights,
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  gates: Float64Array,
  memory: DualMemory,
  past: number,
): Float64Array {
  const { heads, form } = node;
  const { kvHeads, headDim } = form;
  const out = new Float64Array(q.length);
  for (let t = 0; t * heads * headDim < q.length; t++) {
    const position = past + t;
    const token = {
      key: rotated(tokenOf(k, t, kvHeads * headDim), headDim, form.rope, position),
      value: tokenOf(v, t, kvHeads * headDim),
      gates: tokenOf(gates, t, gateWidth(form)),
    };
    arrive(form, weights.key, memory, token, position);
    const query = tokenOf(q, t, heads * headDim);
    for (let head = 0; head < heads; head++)
      out.set(read(node, weights, memory, query, head, position), (t * heads + head) * headDim);
  }
  return weights.outputNorm ? rmsNorm(out, weights.outputNorm.data, node.outputNorm!.eps) : out;
}

export interface Token {
  /** [kvHeads*headDim], rotated where the form has a rope. */
  readonly key: Float64Array;
  /** [kvHeads*headDim] */
  readonly value: Float64Array;
  /** [gate width], logits */
  readonly gates: Float64Array;
}

/** Takes in the token at `position`: into the states, or into the window, from which token `position - window` moves to the states. */
export function arrive(
  form: DualForm,
  features: Tensor | undefined,
  memory: DualMemory,
  token: Token,
  position: number,
): void {
  if (!form.exact || !memory.exact) {
    enter(form, features, memory.state, token, position);
    return;
  }
  const { window, sinks } = form.exact;
  const { keys, values, gates } = memory.exact;
  const entries = sinks + window;
  const width = gateWidth(form);
  const leaving = position - window;
  if (leaving >= sinks) {
    const entry = ringIndex(leaving, window, sinks);
    const old = {
      key: load(keys, entry, entries, form.headDim),
      value: load(values, entry, entries, form.headDim),
      gates: tokenOf(gates, entry, width),
    };
    enter(form, features, memory.state, old, leaving);
  }
  const entry = ringIndex(position, window, sinks);
  store(keys, token.key, entry, entries, form.headDim);
  store(values, token.value, entry, entries, form.headDim);
  gates.set(token.gates, entry * width);
}

/** S_i <- exp(a_i) S_i + phi(k) [v, 1]^T */
function enter(
  form: DualForm,
  features: Tensor | undefined,
  state: Float64Array,
  token: Token,
  position: number,
): void {
  const { states, kvHeads, headDim, gate, temperature } = form;
  const key = token.key.slice();
  if (form.rope && !form.ropeInState) rotate(key, headDim, form.rope, -position);
  const columns = headDim + (form.normaliser ? 1 : 0);
  for (let group = 0; group < kvHeads; group++) {
    const phi = featureMap(features, key.subarray(group * headDim, (group + 1) * headDim), group);
    for (let i = 0; i < states; i++) {
      const unit = i * kvHeads + group;
      for (let c = 0; c < phi.length; c++) {
        const logit = token.gates[gate === 'vector' ? unit * headDim + c : unit]!;
        const decay = Math.exp(logSigmoid(logit) / temperature);
        const row = (unit * phi.length + c) * columns;
        for (let d = 0; d < headDim; d++)
          state[row + d] = decay * state[row + d]! + phi[c]! * token.value[group * headDim + d]!;
        if (form.normaliser) state[row + headDim] = decay * state[row + headDim]! + phi[c]!;
      }
    }
  }
}

/** Output of one query head, [headDim]. query [heads*headDim] before rotation. */
function read(
  node: Settings,
  weights: DualWeights,
  memory: DualMemory,
  query: Float64Array,
  head: number,
  position: number,
): Float64Array {
  const { states, kvHeads, headDim, rope, ropeInState, normaliser, exact } = node.form;
  const group = Math.floor((head * kvHeads) / node.heads);
  const plain = query.subarray(head * headDim, (head + 1) * headDim);
  const turned = rotated(plain, headDim, rope, position);
  const phi = featureMap(weights.query, ropeInState ? turned : plain, head);
  const gamma = mixture(weights.mix, head, states);
  const total = new Float64Array(headDim + 1); // numerator, then denominator
  if (exact) addExact(node, memory.exact!, turned, group, position, total);

  const share = exact ? Math.exp(weights.logWeight!.data[head]!) : normaliser ? 1 : node.scale;
  const columns = headDim + (normaliser ? 1 : 0);
  for (let i = 0; i < states; i++) {
    for (let c = 0; c < phi.length; c++) {
      const row = ((i * kvHeads + group) * phi.length + c) * columns;
      const factor = share * gamma[i]! * phi[c]!;
      for (let d = 0; d < columns; d++) total[d]! += factor * memory.state[row + d]!;
    }
  }
  const divisor = normaliser ? total[headDim]! : 1;
  return total.subarray(0, headDim).map((x) => x / divisor);
}

/** total += sum over the exact set of e^(s - m) [v, 1]; query [headDim] after rotation. */
function addExact(
  { form, scale }: Settings,
  { keys, values }: NonNullable<DualMemory['exact']>,
  query: Float64Array,
  group: number,
  position: number,
  total: Float64Array,
): void {
  const { headDim, exact } = form;
  const { window, sinks } = exact!;
  const first = group * (sinks + window);
  const offsets = Int32Array.from(
    visible(position, { size: window, sinks }),
    (j) => (first + ringIndex(j, window, sinks)) * headDim,
  );
  const { weights, sum } = softmaxWeights(query, keys, offsets, scale);
  addWeighted(total.subarray(0, headDim), values, offsets, weights);
  total[headDim]! += sum;
}

/** phi(x) = [exp(y - c), exp(-y - c)], y = W x, c = max |y|; W [heads, F, headDim]. Without W: phi(x) = x. */
function featureMap(weight: Tensor | undefined, x: Float64Array, head: number): Float64Array {
  if (!weight) return x;
  const [, features, headDim] = weight.shape as [number, number, number];
  const y = new Float64Array(features);
  for (let f = 0; f < features; f++) y[f] = dot(weight.data, (head * features + f) * headDim, x, 0, headDim);
  const max = y.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const phi = new Float64Array(2 * features);
  for (let f = 0; f < features; f++) {
    phi[f] = Math.exp(y[f]! - max);
    phi[features + f] = Math.exp(-y[f]! - max);
  }
  return phi;
}

/** gamma = softmax over the states; mix [1 | heads, states]. */
function mixture(mix: Tensor, head: number, states: number): Float64Array {
  const row = mix.shape[0] === 1 ? 0 : head;
  const logits = mix.data.subarray(row * states, (row + 1) * states);
  const max = logits.reduce((a, b) => Math.max(a, b));
  const weights = logits.map((x) => Math.exp(x - max));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((x) => x / sum);
}
