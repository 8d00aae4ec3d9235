import type { NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Derivation, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';

/**
 * Mamba's scan of rows, as gated linear attention with a head a channel, keys of width n and values of width 1:
 * q = C, k = B, v = dt x, log decay = dt A. x, dt [rows, T, channels]; b, c [rows, T, heads*n] -> [rows, T, channels].
 */
export function selectiveScan(node: NodeOf<'selectiveScan'>, lowering: Lowering, x: Ref, dt: Ref, b: Ref, c: Ref): Ref {
  const { graph, shapeOf, weight } = lowering;
  const [heads, width, n] = shapeOf(node.logA) as [number, number, number];
  const channels = heads * width;
  const dims = [lowering.rows(1), channels, n, 1];
  const decay = graph.op('Mul', [graph.op('Unsqueeze', [dt, graph.ints([3])]), weight(node.logA, negativeExp)]); // [rows, T, channels, n]
  const [y, next] = graph.msOps(
    'LinearAttention',
    [c, b, graph.op('Mul', [dt, x]), lowering.past(node.state, 0, dims), graph.reshape(decay, [0, -1, channels * n])],
    2,
    // The scale must be set: 0, the default, means 1 / sqrt(n).
    { q_num_heads: heads, kv_num_heads: channels, update_rule: 'gated', scale: float(1) },
  );
  lowering.present(node.state, 0, next!, dims);
  const skip = graph.op('Mul', [x, weight(node.d, flat)]);
  return graph.op('Add', [y!, skip]);
}

/** Tokens in one run, so that the decays stay small: channels * n floats each. */
export function scanPiece(channels: number, n: number): number {
  return Math.max(1, Math.floor(decayLimit / (channels * n)));
}

const decayLimit = 1 << 23; // floats

/** A = -exp(logA), [channels, n] */
const negativeExp: Derivation = {
  name: 'negative exp',
  shape: ([heads, width, n]) => [heads! * width!, n!],
  apply: (logA) => logA.map((x) => -Math.exp(x)),
};

/** D, [channels] */
const flat: Derivation = {
  name: 'flat',
  shape: ([heads, width]) => [heads! * width!],
  apply: (d) => d,
};
