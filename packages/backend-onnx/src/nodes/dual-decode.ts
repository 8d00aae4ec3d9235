import type { NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Derivation, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { rotateTokens, rotateTokensBack } from '../rope.js';
import { divided, gamma, outputNorm } from './dual-linear-attention.js';
import { featuresOf, featuresOfTokens } from './feature-map.js';
import {
  joinOne,
  type KeptOne,
  leavesNow,
  leavingMask,
  leavingPosition,
  type Ring,
  tokenScores,
  visible,
} from './ring-decode.js';

// Dual linear attention of one token of each of B rows. In the comments: St states, g kv heads, G query heads a kv head, F
// features of phi, V value columns, E entries of the ring.

type Dual = NodeOf<'dualLinearAttention'>;

/** In float: q [B, 1, heads*hd], k and v [B, 1, g*hd], gates [B, 1, gate width] -> [B, 1, heads*hd]. */
export function dualDecode(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref {
  const { graph } = lowering;
  const { heads, form, scale } = node;
  const { kvHeads, headDim, rope, normaliser, states, exact, featureMap: map } = form;
  const group = heads / kvHeads;
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope) : x);
  const forState = (x: Ref, of: number): Ref => (form.ropeInState ? turned(x, of) : x);

  const memory = exact && remember(node, exact, lowering, turned(k, kvHeads), v, gates);
  const token = memory ? memory.leaving : { k: forState(k, kvHeads), v, decays: decaysOf(node, lowering, gates) };
  const features = featuresOf(lowering, map?.key, headDim);
  const columns = headDim + (normaliser ? 1 : 0);

  const queries = featuresOfTokens(lowering, graph.reshape(forState(q, heads), [-1, heads, headDim]), map?.query);
  const keys = featuresOfTokens(lowering, graph.reshape(token.k, [-1, kvHeads, headDim]), map?.key);
  const entering = memory ? graph.op('Mul', [keys, memory.mask]) : keys;
  const values = graph.reshape(token.v, [-1, kvHeads, headDim]);
  const mix = lowering.weight(node.mix, gamma);
  const weighted = graph.op('Mul', [graph.op('Unsqueeze', [queries, graph.ints([1])]), mix]); // [B, St, heads, F]

  /** [B, ...] -> [B*St, 1, width], the same for every state */
  const forAll = (x: Ref, width: number): Ref => {
    const flat = graph.reshape(x, [-1, 1, width]);
    return states === 1 ? flat : graph.reshape(graph.op('Expand', [flat, graph.ints([1, states, 1])]), [-1, 1, width]);
  };
  const sizes = { heads, kvHeads, features, columns, scale: memory || normaliser ? 1 : scale };
  const streams = {
    q: graph.reshape(weighted, [-1, 1, heads * features]),
    k: forAll(entering, kvHeads * features),
    v: forAll(normaliser ? withOne(lowering, values) : values, kvHeads * columns),
    decays: graph.reshape(token.decays, [-1, 1, form.gate === 'vector' ? kvHeads * features : kvHeads]),
  };
  const dims = [lowering.rows(states), kvHeads, features, columns];
  const { fastState } = lowering.dialect;
  const update = fastState === 0 || (features === fastState && columns === fastState) ? byOperator : byParts;
  const [out, next] = update(lowering, streams, lowering.past(node.state, 0, dims), sizes);
  lowering.present(node.state, 0, next, dims);
  let total = graph.reshape(out, [-1, states, heads * columns]);
  if (states > 1) total = graph.op('ReduceSum', [total, graph.ints([1])], { keepdims: 0 });
  total = graph.reshape(total, [-1, kvHeads, group, columns]);
  if (memory) {
    const weight = graph.reshape(lowering.weight(exact!.logWeight, share), [kvHeads, group, 1]);
    total = graph.op('Add', [
      exactPart(memory, lowering, graph.reshape(turned(q, heads), [-1, kvHeads, group, headDim]), node),
      graph.op('Mul', [total, weight]),
    ]);
  }
  const result = normaliser ? divided(lowering, total, headDim) : total; // [B, g, G, hd]
  return graph.reshape(outputNorm(node, lowering, result), [-1, 1, heads * headDim]);
}

/** Of B*St states and a token: q [B*St, 1, heads*F], k [B*St, 1, g*F], v [B*St, 1, g*V], decays [B*St, 1, g or g*F]. */
interface Token {
  readonly q: Ref;
  readonly k: Ref;
  readonly v: Ref;
  readonly decays: Ref;
}

interface Sizes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly features: number;
  readonly columns: number;
  readonly scale: number;
}

/** What the states [B*St, g, F, V] give with the token, [B*St, 1, heads*V], and what they become. */
function byOperator(
  { graph }: Lowering,
  { q, k, v, decays }: Token,
  past: Ref,
  { heads, kvHeads, scale }: Sizes,
): [Ref, Ref] {
  const attributes = { q_num_heads: heads, kv_num_heads: kvHeads, update_rule: 'gated', scale: float(scale) };
  return graph.msOps('LinearAttention', [q, k, v, past, decays], 2, attributes) as [Ref, Ref];
}

function byParts({ graph }: Lowering, { q, k, v, decays }: Token, past: Ref, sizes: Sizes): [Ref, Ref] {
  const { heads, kvHeads, features, columns, scale } = sizes;
  const added = graph.matmul(graph.reshape(k, [-1, kvHeads, features, 1]), graph.reshape(v, [-1, kvHeads, 1, columns]));
  const kept = graph.op('Mul', [past, graph.op('Exp', [graph.reshape(decays, [0, kvHeads, -1, 1])])]);
  const next = graph.op('Add', [kept, added]);
  const queries = graph.reshape(q, [-1, kvHeads, heads / kvHeads, features]);
  return [graph.reshape(graph.matmul(queries, next, { alpha: scale }), [-1, 1, heads * columns]), next];
}

/** One more column, of ones. */
function withOne({ graph }: Lowering, x: Ref): Ref {
  return graph.op('Pad', [x, graph.ints([0, 1]), graph.floats(1), graph.ints([-1])]);
}

/** Weights of the states against the exact part, [heads]. */
const share: Derivation = { name: 'share', shape: (heads) => heads, apply: (logWeight) => logWeight.map(Math.exp) };

/** Gate logits [B, 1, gate width] -> log decays of the same shape. */
function decaysOf({ form }: Dual, { graph }: Lowering, gates: Ref): Ref {
  const soft = graph.op('Softplus', [graph.op('Neg', [gates])]); // -logSigmoid
  return graph.op('Mul', [soft, graph.floats(-1 / form.temperature)]);
}

/** A ring of each row, and the token that has just left it. */
interface Memory {
  readonly ring: Ring;
  readonly keys: KeptOne;
  readonly values: KeptOne;
  /** k, v [B, g, 1, hd], log decays [B, 1, gate width] */
  readonly leaving: { readonly k: Ref; readonly v: Ref; readonly decays: Ref };
  /** float [B, 1, 1]: 1 where a token leaves */
  readonly mask: Ref;
}

function remember(node: Dual, ring: Ring, lowering: Lowering, k: Ref, v: Ref, gates: Ref): Memory {
  const { graph } = lowering;
  const { state, form } = node;
  const { kvHeads, headDim, rope, ropeInState } = form;
  const entries = ring.sinks + ring.window;
  const ofHeads = (part: number, x: Ref): KeptOne =>
    joinOne(
      lowering,
      { ring, state, part, dims: [kvHeads, entries, headDim], leaves: true, narrow: true },
      graph.reshape(x, [-1, kvHeads, 1, headDim]),
    );
  const width = lowering.widthOf(state, 3);
  const kept = { ring, state, part: 3, dims: [entries, width], leaves: true, narrow: false };
  const [keys, values, past] = [ofHeads(1, k), ofHeads(2, v), joinOne(lowering, kept, gates)];
  const mask = lowering.control(leavingMask(ring));
  const left = (of: KeptOne, dims: readonly number[]): Ref =>
    graph.op('Where', [graph.reshape(lowering.control(leavesNow(ring)), dims), of.old, of.own]);
  const key = left(keys, [-1, 1, 1, 1]);
  return {
    ring,
    keys,
    values,
    leaving: {
      k: rope && !ropeInState ? rotateTokensBack(lowering, key, leavingPosition(ring), kvHeads, rope) : key,
      v: left(values, [-1, 1, 1, 1]),
      decays: graph.op('Mul', [decaysOf(node, lowering, left(past, [-1, 1, 1])), mask]),
    },
    mask,
  };
}

/** sum over the exact set of e^(s - m) [v, 1]: [B, g, G, hd + 1]; q [B, g, G, hd] */
function exactPart(
  { ring, keys, values: kept }: Memory,
  lowering: Lowering,
  q: Ref,
  { scale, form: { headDim } }: Dual,
): Ref {
  const { graph } = lowering;
  const scores = tokenScores(lowering, ring, q, keys.seen, scale); // [B, g, G, E]
  const max = graph.op('ReduceMax', [scores, graph.ints([-1])], { keepdims: 1 });
  const weights = graph.op('Exp', [graph.op('Sub', [scores, max])]);
  const sum = graph.op('ReduceSum', [weights, graph.ints([-1])], { keepdims: 1 });
  const values = graph.matmul(weights, visible(lowering, ring, kept.seen));
  // Side by side without Concat, which copies sizes from host memory on CUDA, so that no step with it could be recorded.
  const padded = (x: Ref, before: number, after: number): Ref =>
    graph.op('Pad', [x, graph.ints([before, after]), '', graph.ints([-1])]);
  return graph.op('Add', [padded(values, 0, 1), padded(sum, headDim, 0)]);
}
