import { type DualForm, gateWidth, type NodeOf } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { extendRing, type Geometry, nextRing, ringGeometry, span } from '../cache.js';
import type { Carry, Frame, Stateful } from '../frame.js';
import { mergeQueries, perRow, splitKeys, splitQueries } from '../heads.js';
import { exactAttention } from '../kernels/exact-attention.js';
import { scalarGated, vectorGated } from '../kernels/gated-linear-attention.js';
import { logSigmoid } from '../kernels/log-sigmoid.js';
import { scalarForward } from '../kernels/scalar-gates.js';
import { vectorForward } from '../kernels/vector-gates.js';
import { normalise } from './plain.js';
import { divide } from './softmax-attention.js';

// M = rows * kvHeads, R query heads a key head, T tokens, S states.

/** Decays below e^-50 are 0 in float32; the limit keeps sums over a chunk exact. The paper's code has the same. */
const strongest = -50;

type Node = NodeOf<'dualLinearAttention'>;

export const dualLinearAttention: Stateful<'dualLinearAttention'> = (node, [q, k, v, gates], frame, rows, carry) => {
  const { heads, form } = node;
  const { kvHeads, rope, exact } = form;
  const past = carry?.past ?? 0;
  const plain = splitQueries(q!, rows, heads, kvHeads);
  const turned = exact || form.ropeInState ? frame.rope.rotate(plain, rope, past) : plain;
  const arriving = arrive(form, k!, v!, gates!, frame, rows, carry);

  const seen = exact && exactAttention(tf.mul(turned, node.scale), arriving.keys, arriving.values, arriving.at!); // [M, R, T, hd + 1]
  const entered = readStates(node, form.ropeInState ? turned : plain, arriving.entering, frame, rows, carry);
  const o = combine(node, seen, entered?.o, frame, rows);
  const normed = node.outputNorm ? normalise(o, frame.weight(node.outputNorm.weight), node.outputNorm.eps) : o;
  const y = mergeQueries(normed, rows, heads);
  if (!carry) return { y, parts: [] };
  return { y, parts: [entered?.state ?? emptyState(form, frame), ...arriving.rings] };
};

/** Tokens that enter the states, one a query; the first `empty` queries see none enter. */
export interface Entering {
  /** [M, T - empty, hd], as the states want them. */
  readonly keys: Tensor;
  /** [M, T - empty, hd] */
  readonly values: Tensor;
  /** Logits [rows, T - empty, gate width] */
  readonly gates: Tensor;
  readonly empty: number;
}

interface Arrived {
  /** What queries see exactly (with an exact part): sinks, then the tokens around the window. */
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly at: Geometry | undefined;
  /** Absent: nothing has entered the states yet. */
  readonly entering: Entering | undefined;
  /** The state's parts after `state`. */
  readonly rings: readonly Tensor[];
}

/** Takes in tokens: k, v [rows*T, kvHeads*hd] and gate logits [rows*T, gate width]. */
export function arrive(
  form: DualForm,
  k: Tensor,
  v: Tensor,
  gates: Tensor,
  frame: Frame,
  rows: number,
  carry: Carry | undefined,
): Arrived {
  const past = carry?.past ?? 0;
  const { kvHeads, rope, ropeInState, exact } = form;
  const plain = splitKeys(k, rows, kvHeads);
  const keys = exact || ropeInState ? frame.rope.rotate(plain, rope, past) : plain;
  const values = splitKeys(v, rows, kvHeads);
  const logits = tf.reshape(gates, [rows, -1, gateWidth(form)]);
  if (!exact) return { keys, values, at: undefined, entering: { keys, values, gates: logits, empty: 0 }, rings: [] };

  const { window, sinks } = exact;
  const count = keys.shape[1]!;
  const at = ringGeometry(past, count, window, sinks);
  const [, oldKeys, oldValues, oldGates] = carry?.parts ?? [];
  const columns = [
    extendRing(oldKeys, keys, at, sinks),
    extendRing(oldValues, values, at, sinks),
    extendRing(oldGates && tf.expandDims(oldGates, 0), logits, at, sinks),
  ] as const;
  const empty = at.start - (past - window); // queries before the first token leaves the window
  const leaving = (x: Tensor) => span(x, at.sinks, at.sinks + count - empty);
  const turned = leaving(columns[0]);
  const entering = turned && {
    keys: ropeInState ? turned : frame.rope.rotate(turned, rope, at.start, true),
    values: leaving(columns[1])!,
    gates: leaving(columns[2])!,
    empty,
  };
  if (!carry) return { keys: columns[0], values: columns[1], at, entering, rings: [] };
  const rings = columns.map((x) => nextRing(x, at, sinks));
  rings[2] = tf.squeeze(rings[2]!, [0]);
  return { keys: columns[0], values: columns[1], at, entering, rings };
}

/** What the tokens write to the states: nothing where none enters. */
export interface Writes {
  /** phi(k) [M, T, K] */
  readonly k: Tensor;
  /** [M, T, V] */
  readonly v: Tensor;
  /** Natural logs, [M, S, T] (scalar) or [M, T, S*hd] (vector). */
  readonly decay: Tensor;
}

export function writes(form: DualForm, { keys, values, gates, empty }: Entering, frame: Frame, rows: number): Writes {
  const map = form.featureMap && perRow(frame.weight(form.featureMap.key), rows, form.kvHeads);
  const phi = map ? features(keys, tf.squeeze(map, [1])) : keys;
  const v = form.normaliser ? tf.concat([values, tf.ones([...values.shape.slice(0, 2), 1])], 2) : values;
  const late = (x: Tensor) =>
    empty > 0
      ? tf.pad(x, [
          [0, 0],
          [empty, 0],
          [0, 0],
        ])
      : x;
  return { k: late(phi), v: late(v), decay: decays(form, late(logDecays(form, gates))) };
}

/** sum_i mix_i phi(q)^T S_i [M, R, T, V], and the states after it as their spec has them; nothing before any token entered. */
function readStates(
  node: Node,
  q: Tensor,
  entering: Entering | undefined,
  frame: Frame,
  rows: number,
  carry: Carry | undefined,
): { readonly o: Tensor; readonly state: Tensor | undefined } | undefined {
  if (!entering) return undefined;
  const { form, heads } = node;
  const { kvHeads, states } = form;
  const map = form.featureMap && perRow(frame.weight(form.featureMap.query), rows, kvHeads);
  const phi = map ? features(q, map) : q;
  const share = tf.softmax(frame.weight(node.mix)); // [1 | heads, S]
  const mix = perRow(share.shape[0] === heads ? share : tf.tile(share, [heads, 1]), rows, kvHeads); // [M, R, S]
  const write = writes(form, entering, frame, rows);
  const initial = carry?.parts && toRows(carry.parts[0]!);
  if (form.gate === 'scalar') {
    const inputs = { q: phi, ...write, mix, initial };
    if (!carry) return { o: scalarGated(inputs), state: undefined };
    const { o, state } = scalarForward(inputs);
    return { o, state: fromRows(state, form) };
  }
  // Channels of all states side by side: one state with S times the channels, the mix in the query.
  const wide = { ...write, k: tf.tile(write.k, [1, 1, states]), initial };
  const group = heads / kvHeads;
  const runs = Array.from({ length: group }, (_, head) => {
    const own = tf.squeeze(tf.slice(phi, [0, head, 0, 0], [-1, 1, -1, -1]), [1]); // [M, T, hd]
    const weights = tf.slice(mix, [0, head, 0], [-1, 1, -1]); // [M, 1, S]
    const parts = tf.split(weights, states, 2).map((weight) => tf.mul(own, weight));
    const inputs = { ...wide, q: tf.concat(parts, 2) };
    return carry ? vectorForward(inputs) : { o: vectorGated(inputs), state: undefined };
  });
  const last = runs[0]!.state;
  return {
    o: tf.stack(
      runs.map(({ o }) => o),
      1,
    ),
    state: last && fromRows(last, form),
  };
}

/** The exact part and the states under one normaliser, or the states alone: [M, R, T, hd]. */
function combine(
  { form, scale }: Node,
  seen: Tensor | undefined,
  entered: Tensor | undefined,
  frame: Frame,
  rows: number,
): Tensor {
  if (!form.normaliser) return tf.mul(entered!, scale);
  if (!seen || !form.exact) return divide(entered!);
  if (!entered) return divide(seen);
  const weight = perRow(tf.exp(frame.weight(form.exact.logWeight)), rows, form.kvHeads); // [M, R]
  return divide(tf.add(seen, tf.mul(entered, tf.expandDims(tf.expandDims(weight, 2), 3))));
}

/** phi(x) = [exp(Wx - c), exp(-Wx - c)], c = max |Wx|: x [..., T, hd], W [..., F, hd]. */
function features(x: Tensor, weight: Tensor): Tensor {
  const y = tf.matMul(x, weight, false, true);
  const bound = tf.max(tf.abs(y), -1, true);
  return tf.concat([tf.exp(tf.sub(y, bound)), tf.exp(tf.sub(tf.neg(y), bound))], -1);
}

/** Natural log of the decays, same shape as the logits. */
function logDecays(form: DualForm, gates: Tensor): Tensor {
  return tf.maximum(tf.div(logSigmoid(gates), form.temperature), strongest);
}

/** [rows, T, gate width] as [M, S, T] (scalar) or [M, T, S*hd] (vector). */
function decays({ gate, states, kvHeads, headDim }: DualForm, logs: Tensor): Tensor {
  const [rows, tokens] = logs.shape as [number, number];
  if (gate === 'scalar') {
    const byHead = tf.transpose(tf.reshape(logs, [rows, tokens, states, kvHeads]), [0, 3, 2, 1]);
    return tf.reshape(byHead, [rows * kvHeads, states, tokens]);
  }
  const byHead = tf.transpose(tf.reshape(logs, [rows, tokens, states, kvHeads, headDim]), [0, 3, 1, 2, 4]);
  return tf.reshape(byHead, [rows * kvHeads, tokens, states * headDim]);
}

/** [S, kvHeads, K, V] as [kvHeads, S*K, V]. */
function toRows(state: Tensor): Tensor {
  const [states, kvHeads, k, v] = state.shape as [number, number, number, number];
  return tf.reshape(tf.transpose(state, [1, 0, 2, 3]), [kvHeads, states * k, v]);
}

/** Undoes toRows. */
export function fromRows(state: Tensor, { states }: DualForm): Tensor {
  const [kvHeads, width, v] = state.shape as [number, number, number];
  return tf.transpose(tf.reshape(state, [kvHeads, states, width / states, v]), [1, 0, 2, 3]);
}

/** Zeros [S, kvHeads, K, V]. */
export function emptyState(form: DualForm, frame: Frame): Tensor {
  const { states, kvHeads, headDim, featureMap, normaliser } = form;
  const width = featureMap ? 2 * frame.weight(featureMap.key).shape[1]! : headDim;
  return tf.zeros([states, kvHeads, width, headDim + (normaliser ? 1 : 0)]);
}
