import { type DualForm, gateWidth, type NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Derivation, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { rotate, rotateTokens, turnAt } from '../rope.js';
import {
  type Blocking,
  blocksOf,
  byHead,
  floats,
  fromBlocks,
  gatherTokens,
  rowTokens,
  toBlocks,
  tokenControl,
} from './blocks.js';
import { featureMap, featuresOf } from './feature-map.js';
import { chunked, recurrent, type Sizes } from './linear-state.js';
import { arrive, enteringIndex, enteringPosition, enters, exactScores, type Ring, seenBy } from './ring.js';
import { logSigmoid } from './token-wise.js';

// In the comments: St states, g kv heads, G query heads a kv head, n blocks of C tokens, F features of phi.

type Dual = NodeOf<'dualLinearAttention'>;

/** One row: q [1, T, heads*hd], k and v [1, T, kvHeads*hd], gates [1, T, gate width] -> [1, T, heads*hd]. */
export function dualLinearAttention(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref {
  const { graph, decode } = lowering;
  const { heads, form, scale } = node;
  const { kvHeads, headDim, rope, normaliser } = form;
  const group = heads / kvHeads;
  const blocking = { full: form.gate === 'vector' && !decode };
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, headDim, rope) : x);
  const forState = (x: Ref, of: number): Ref => (form.ropeInState ? turned(x, of) : x);
  const queries = (x: Ref): Ref => toBlocks(lowering, x, blocking, kvHeads, headDim, group);

  const ring = form.exact && keep(node, form.exact, lowering, turned(k, kvHeads), v, gates);
  const tokens = ring
    ? leaving(form, ring, lowering)
    : arriving(form, blocking, lowering, forState(k, kvHeads), v, gates);
  const map = form.featureMap;
  const sizes: Sizes = {
    states: form.states,
    kvHeads,
    group,
    features: featuresOf(lowering, map?.key, headDim),
    columns: headDim + (normaliser ? 1 : 0),
  };
  const streams = {
    q: featureMap(lowering, queries(forState(q, heads)), map?.query, [kvHeads, 1, group]),
    k: graph.op('Mul', [featureMap(lowering, tokens.k, map?.key, [kvHeads, 1]), tokens.mask]),
    v: normaliser ? withOne(lowering, tokens.v) : tokens.v,
    decays: tokens.decays,
    gamma: lowering.weight(node.mix, gammaOf(kvHeads, group)),
  };
  const dims = [form.states, kvHeads, sizes.features, sizes.columns];
  let total = (decode ? recurrent : chunked)(lowering, streams, sizes, form.gate, {
    past: lowering.past(node.state, 0, dims),
    next: (value) => lowering.present(node.state, 0, value, dims),
  }); // [g, n, G, C, hd (+ 1)]
  if (ring) {
    const share = lowering.weight(form.exact!.logWeight, shareOf(kvHeads, group));
    const exact = exactPart(ring, lowering, queries(turned(q, heads)), scale);
    total = graph.op('Add', [exact, graph.op('Mul', [total, share])]);
  } else if (!normaliser) total = graph.op('Mul', [total, graph.floats(scale)]);
  const out = normaliser ? divided(lowering, total, headDim) : total;
  return fromBlocks(lowering, outputNorm(node, lowering, out), heads * headDim);
}

/** Tokens that enter the states, in blocks. */
interface Tokens {
  /** [g, n, C, hd], as the state wants them */
  readonly k: Ref;
  /** [g, n, C, hd] */
  readonly v: Ref;
  /** [St, g, n, C, hd or 1] */
  readonly decays: Ref;
  /** [n, C, 1]: 1 where there is a token, 0 elsewhere */
  readonly mask: Ref;
}

/** The tokens of the step themselves. */
function arriving(form: DualForm, blocking: Blocking, lowering: Lowering, k: Ref, v: Ref, gates: Ref): Tokens {
  const { kvHeads, headDim } = form;
  const mask = lowering.control(maskControl('tokens', blocking, (t, { count }) => t < count));
  const logits = gatherTokens(lowering, gates, gateWidth(form), rowTokens(blocking));
  return {
    k: toBlocks(lowering, k, blocking, kvHeads, headDim),
    v: toBlocks(lowering, v, blocking, kvHeads, headDim),
    decays: decaysOf(form, lowering, logits, mask),
    mask,
  };
}

/** Keys (rotated), values and gate logits of the ring and the new tokens: [g, entries + T, hd] and [entries + T, gate width]. */
interface Kept {
  readonly ring: Ring;
  readonly keys: Ref;
  readonly values: Ref;
  readonly gates: Ref;
}

function keep({ state, form }: Dual, ring: Ring, lowering: Lowering, k: Ref, v: Ref, gates: Ref): Kept {
  const { kvHeads, headDim } = form;
  const entries = ring.sinks + ring.window;
  const heads = (x: Ref): Ref => byHead(lowering, x, kvHeads, headDim);
  const dims = [kvHeads, entries, headDim];
  const width = gateWidth(form);
  return {
    ring,
    keys: arrive(lowering, state, 1, ring, heads(k), 1, dims),
    values: arrive(lowering, state, 2, ring, heads(v), 1, dims),
    gates: arrive(lowering, state, 3, ring, lowering.graph.reshape(gates, [-1, width]), 0, [entries, width]),
  };
}

/** The tokens that leave the window: at query t of the step the one that is `window` older. */
function leaving(form: DualForm, { ring, keys, values, gates }: Kept, lowering: Lowering): Tokens {
  const { graph, control } = lowering;
  const key = `leaving ${ring.sinks}+${ring.window}`;
  const blocking = { full: false };
  const index = control(tokenControl(`${key} index`, blocking, (t, row) => enteringIndex(ring, row, t)));
  const mask = control(maskControl(key, blocking, (t, row) => enters(ring, row, t)));
  let k = graph.op('Gather', [keys, index], { axis: 1 });
  if (form.rope && !form.ropeInState) {
    const position = tokenControl(`${key} position`, blocking, (t, row) => enteringPosition(ring, row, t));
    k = rotate(lowering, k, turnAt(lowering, form.rope, control(position)), form.rope, form.headDim, true);
  }
  return {
    k,
    v: graph.op('Gather', [values, index], { axis: 1 }),
    decays: decaysOf(form, lowering, graph.op('Gather', [gates, index], { axis: 0 }), mask),
    mask,
  };
}

/** Gate logits [n, C, gate width] -> log decays [St, g, n, C, hd or 1], 0 where there is no token. */
export function decaysOf(form: DualForm, { graph }: Lowering, logits: Ref, mask: Ref): Ref {
  const decays = graph.op('Mul', [logSigmoid(graph, logits), graph.floats(1 / form.temperature)]);
  const width = form.gate === 'vector' ? form.headDim : 1;
  const parts = graph.reshape(graph.op('Mul', [decays, mask]), [0, 0, form.states, form.kvHeads, width]);
  return graph.transpose(parts, [2, 3, 0, 1, 4]);
}

/** sum over the exact set of e^(s - m) [v, 1]: [g, n, G, C, hd + 1] */
function exactPart({ ring, keys, values }: Kept, lowering: Lowering, q: Ref, scale: number): Ref {
  const { graph } = lowering;
  const scores = exactScores(lowering, ring, q, seenBy(lowering, ring, keys), scale);
  const max = graph.op('ReduceMax', [scores, graph.ints([-1])], { keepdims: 1 });
  const weights = graph.op('Exp', [graph.op('Sub', [scores, max])]);
  return graph.matmul(weights, withOne(lowering, seenBy(lowering, ring, values)));
}

/** One more column, of ones. */
export function withOne({ graph }: Lowering, x: Ref): Ref {
  return graph.op('Pad', [x, graph.ints([0, 1]), graph.floats(1), graph.ints([-1])]);
}

function divided({ graph }: Lowering, total: Ref, headDim: number): Ref {
  return graph.op('Div', [graph.slice(total, -1, 0, headDim), graph.slice(total, -1, headDim, headDim + 1)]);
}

function outputNorm({ outputNorm: norm }: Dual, { graph, weight }: Lowering, out: Ref): Ref {
  if (!norm) return out;
  const attributes = { axis: -1, epsilon: float(norm.eps), stash_type: 1 };
  return graph.op('SimplifiedLayerNormalization', [out, weight(norm.weight)], attributes);
}

function maskControl(
  key: string,
  blocking: Blocking,
  holds: (t: number, row: { readonly past: number; readonly count: number }) => boolean,
): Control {
  return {
    key: `mask of ${key} ${blocking.full}`,
    type: 'float',
    dims: ['blocks', 'size', 1],
    make(row) {
      const { blocks, size } = blocksOf(row.count, blocking);
      return floats([blocks, size, 1], (t) => (holds(t, row) ? 1 : 0));
    },
  };
}

/** Weights of the states, softmax(mix): [St, 1 or g, 1, 1 or G, 1, 1]. */
function gammaOf(kvHeads: number, group: number): Derivation {
  return {
    name: `gamma ${kvHeads}x${group}`,
    shape: ([rows, states]) => (rows === 1 ? [states!, 1, 1, 1, 1, 1] : [states!, kvHeads, 1, group, 1, 1]),
    apply(mix, [rows, states]) {
      const gamma = new Float32Array(mix.length);
      for (let row = 0; row < rows!; row++) {
        const logits = mix.subarray(row * states!, (row + 1) * states!);
        const max = Math.max(...logits);
        const sum = logits.reduce((total, x) => total + Math.exp(x - max), 0);
        logits.forEach((x, state) => {
          gamma[state * rows! + row] = Math.exp(x - max) / sum;
        });
      }
      return gamma;
    },
  };
}

/** Weight of the states against the exact part: [g, 1, G, 1, 1]. */
function shareOf(kvHeads: number, group: number): Derivation {
  return {
    name: `share ${kvHeads}x${group}`,
    shape: () => [kvHeads, 1, group, 1, 1],
    apply: (logWeight) => logWeight.map(Math.exp),
  };
}
