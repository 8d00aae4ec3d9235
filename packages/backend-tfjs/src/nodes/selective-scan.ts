import type { NodeOf } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { Frame, Stateful } from '../frame.js';
import { vjp } from '../gradients.js';

// A scan over time in segments: the states of one segment, [rows, 32, channels, n], exist at a time. The gradient keeps the
// state that enters every segment and goes through them again from the last to the first.

const segment = 32;

/** x, dt [rows, T, channels]; b, c [rows, T, heads*n]. */
type Sequence = readonly [x: Tensor, dt: Tensor, b: Tensor, c: Tensor];
/** logA [heads, channels/heads, n], d [heads, channels/heads]. */
type Parameters = readonly [logA: Tensor, d: Tensor];

export const selectiveScan: Stateful<'selectiveScan'> = (node, xs, frame, rows, carry) => {
  const { pieces, parameters, initial } = prepare(node, xs, frame, rows);
  const old = carry?.parts?.[0];
  let state = old ? tf.expandDims(old, 0) : initial;
  const ys = pieces.map((piece) => {
    const [y, next] = tf.tidy(() => scan(piece, parameters, state));
    state = next;
    return y;
  });
  const y = tf.reshape(ys.length > 1 ? tf.concat(ys, 1) : ys[0]!, xs[0]!.shape);
  return { y, parts: carry ? [tf.squeeze(state, [0])] : [] };
};

/** Gradients by x, dt, b, c, logA and d, from empty states. */
export function selectiveScanBackward(
  node: NodeOf<'selectiveScan'>,
  xs: readonly Tensor[],
  dy: Tensor,
  frame: Frame,
  rows: number,
): Tensor[] {
  const { pieces, parameters, initial } = prepare(node, xs, frame, rows);
  const entering = [initial];
  for (const piece of pieces.slice(0, -1)) {
    entering.push(tf.tidy(() => scan(piece, parameters, entering.at(-1)!)[1]));
  }
  const dys = cut(tf.reshape(dy, [rows, -1, dy.shape[1]!]));
  const bySegment: Tensor[][] = []; // of x, dt, b, c
  let [dLogA, dD] = parameters.map((parameter) => tf.zerosLike(parameter)) as [Tensor, Tensor];
  let dState = tf.zerosLike(initial); // by the state that leaves the segment
  for (let index = pieces.length - 1; index >= 0; index--) {
    const piece = pieces[index]!;
    const state = entering[index]!;
    const total = () => {
      const [y, next] = scan(piece, parameters, state);
      return tf.add(tf.sum(tf.mul(y, dys[index]!)), tf.sum(tf.mul(next, dState)));
    };
    const own = vjp(total, [...piece, ...parameters, state]);
    bySegment.unshift(own.slice(0, 4));
    [dLogA, dD] = [tf.add(dLogA, own[4]!), tf.add(dD, own[5]!)];
    dState = own[6]!;
  }
  const joined = xs.map((x, index) =>
    tf.reshape(
      tf.concat(
        bySegment.map((own) => own[index]!),
        1,
      ),
      x.shape,
    ),
  );
  return [...joined, dLogA, dD];
}

function prepare(node: NodeOf<'selectiveScan'>, xs: readonly Tensor[], frame: Frame, rows: number) {
  const parameters: Parameters = [frame.weight(node.logA), frame.weight(node.d)];
  const [heads, width, n] = parameters[0].shape as [number, number, number];
  const cuts = xs.map((x) => cut(tf.reshape(x, [rows, -1, x.shape[1]!])));
  const pieces = cuts[0]!.map((_, index) => cuts.map((own) => own[index]!) as unknown as Sequence);
  return { pieces, parameters, initial: tf.zeros([rows, heads * width, n]) };
}

/** [rows, T, width] in stretches of at most 32 tokens. */
function cut(x: Tensor): Tensor[] {
  const tokens = x.shape[1]!;
  return Array.from({ length: Math.ceil(tokens / segment) }, (_, index) =>
    tf.slice(x, [0, index * segment, 0], [-1, Math.min(segment, tokens - index * segment), -1]),
  );
}

/** One segment: y [rows, t, channels] and the state after it [rows, channels, n]. */
function scan([x, dt, b, c]: Sequence, [logA, d]: Parameters, before: Tensor): [y: Tensor, state: Tensor] {
  const [rows, tokens, channels] = x.shape as [number, number, number];
  const [heads, width, n] = logA.shape as [number, number, number];
  const each = [rows, tokens, channels, n];
  const a = tf.reshape(tf.neg(tf.exp(logA)), [channels, n]);
  const decay = tf.exp(tf.mul(tf.expandDims(dt, 3), a)); // [rows, t, channels, n]
  const input = tf.reshape(tf.mul(dt, x), [rows, tokens, heads, width, 1]);
  const byHead = (y: Tensor) => tf.reshape(y, [rows, tokens, heads, 1, n]);
  const write = tf.reshape(tf.mul(input, byHead(b)), each);
  const decays = tf.unstack(decay, 1);
  let state = before;
  const states = tf.unstack(write, 1).map((own, t) => {
    state = tf.add(tf.mul(decays[t]!, state), own);
    return state;
  });
  const history = tf.reshape(tf.stack(states, 1), [rows, tokens, heads, width, n]);
  const read = tf.reshape(tf.sum(tf.mul(history, byHead(c)), -1), x.shape);
  return [tf.add(read, tf.mul(x, tf.reshape(d, [channels]))), state];
}
