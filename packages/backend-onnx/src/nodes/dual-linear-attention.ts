import { type DualForm, gateWidth, type NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Derivation, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { rotateBack, rotateTokens } from '../rope.js';
import {
  type Blocking,
  blocksOf,
  byHead,
  flat,
  floats,
  fromBlocks,
  gatherTokens,
  rowTokens,
  toBlocks,
} from './blocks.js';
import { featureMap, featuresOf } from './feature-map.js';
import { chunked } from './linear-state.js';
import { exactScores, type Kept, keep, leavesAt, leavingPositions, type Ring } from './ring.js';
import type { Sizes } from './streams.js';

// In the comments: St states, g kv heads, G query heads a kv head, n blocks of C tokens, F features of phi.

type Dual = NodeOf<'dualLinearAttention'>;

/** Many tokens of one row, in float: q [1, T, heads*hd], k and v [1, T, kvHeads*hd], gates [1, T, gate width] -> [1, T, heads*hd]. */
export function dualLinearAttention(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref {
  const { graph } = lowering;
  const { heads, form, scale } = node;
  const { kvHeads, headDim, rope, normaliser } = form;
  const group = heads / kvHeads;
  const blocking = { full: form.gate === 'vector' };
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope) : x);
  const forState = (x: Ref, of: number): Ref => (form.ropeInState ? turned(x, of) : x);
  const queries = (x: Ref): Ref => toBlocks(lowering, x, blocking, kvHeads, headDim, group);

  const memory = form.exact && remember(node, form.exact, lowering, turned(k, kvHeads), v, gates);
  const tokens = memory
    ? leaving(form, memory, lowering)
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
    logGamma: lowering.weight(node.mix, logGammaOf(kvHeads, group)),
  };
  const dims = [form.states, kvHeads, sizes.features, sizes.columns];
  let total = chunked(lowering, streams, sizes, form.gate, {
    past: lowering.past(node.state, 0, dims),
    next: (value) => lowering.present(node.state, 0, value, dims),
  }); // [g, n, G, C, hd (+ 1)]
  if (memory) {
    const share = lowering.weight(form.exact!.logWeight, shareOf(kvHeads, group));
    const exact = exactPart(memory, lowering, queries(turned(q, heads)), scale);
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
  /** [g, n, C, St, hd or 1] */
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

/** Keys (rotated), values and gate logits of the ring and the new tokens. */
interface Memory {
  readonly ring: Ring;
  readonly keys: Kept;
  readonly values: Kept;
  readonly gates: Kept;
}

function remember({ state, form }: Dual, ring: Ring, lowering: Lowering, k: Ref, v: Ref, gates: Ref): Memory {
  const { kvHeads, headDim } = form;
  const entries = ring.sinks + ring.window;
  const width = gateWidth(form);
  const heads = (part: number, x: Ref): Kept => {
    const dims = [kvHeads, entries, headDim];
    const where = { ring, state, part, axis: 1, dims, narrow: true } as const;
    return keep(lowering, where, byHead(lowering, x, kvHeads, headDim));
  };
  return {
    ring,
    keys: heads(1, k),
    values: heads(2, v),
    gates: keep(
      lowering,
      { ring, state, part: 3, axis: 0, dims: [entries, width], narrow: false },
      lowering.graph.reshape(gates, [-1, width]),
    ),
  };
}

/** The tokens that leave the window: at query t of the step the one that is `window` older. */
function leaving(form: DualForm, { ring, keys, values, gates }: Memory, lowering: Lowering): Tokens {
  const mask = lowering.control(maskControl(`leaving ${ring.sinks}+${ring.window}`, { full: false }, leavesAt(ring)));
  const where = (): Ref => lowering.control(flat(leavingPositions(ring)));
  const { rope, ropeInState, kvHeads, headDim } = form;
  return {
    k: rope && !ropeInState ? rotateBack(lowering, keys.leaving(), where(), kvHeads, headDim, rope) : keys.leaving(),
    v: values.leaving(),
    decays: decaysOf(form, lowering, gates.leaving(), mask),
    mask,
  };
}

/** Gate logits [n, C, gate width] -> log decays [g, n, C, St, hd or 1], 0 where there is no token. */
export function decaysOf(form: DualForm, { graph }: Lowering, logits: Ref, mask: Ref): Ref {
  const width = form.gate === 'vector' ? form.headDim : 1;
  const soft = graph.op('Softplus', [graph.op('Neg', [logits])]); // -logSigmoid
  const held = graph.op('Mul', [soft, graph.op('Mul', [mask, graph.floats(-1 / form.temperature)])]);
  return graph.transpose(graph.reshape(held, [0, 0, form.states, form.kvHeads, width]), [3, 0, 1, 2, 4]);
}

/** sum over the exact set of e^(s - m) [v, 1]: [g, n, G, C, hd + 1] */
function exactPart({ ring, keys, values }: Memory, lowering: Lowering, q: Ref, scale: number): Ref {
  const { graph } = lowering;
  const scores = exactScores(lowering, ring, q, keys.seen(), scale);
  const max = graph.op('ReduceMax', [scores, graph.ints([-1])], { keepdims: 1 });
  const weights = graph.op('Exp', [graph.op('Sub', [scores, max])]);
  return graph.matmul(weights, withOne(lowering, values.seen()));
}

/** One more column, of ones. */
export function withOne({ graph }: Lowering, x: Ref): Ref {
  return graph.op('Pad', [x, graph.ints([0, 1]), graph.floats(1), graph.ints([-1])]);
}

export function divided({ graph }: Lowering, total: Ref, headDim: number): Ref {
  return graph.op('Div', [graph.slice(total, -1, 0, headDim), graph.slice(total, -1, headDim, headDim + 1)]);
}

export function outputNorm({ outputNorm: norm }: Dual, { graph, floatWeight }: Lowering, out: Ref): Ref {
  if (!norm) return out;
  const attributes = { axis: -1, epsilon: float(norm.eps), stash_type: 1 };
  return graph.op('SimplifiedLayerNormalization', [out, floatWeight(norm.weight)], attributes);
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

/** Weights of the states, softmax(mix), for one token: [St, 1 or heads, 1]. */
export const gamma: Derivation = {
  name: 'gamma',
  shape: ([rows, states]) => [states!, rows!, 1],
  apply(mix, [rows, states]) {
    const weights = new Float32Array(mix.length);
    for (let row = 0; row < rows!; row++) {
      const logits = mix.subarray(row * states!, (row + 1) * states!);
      const max = Math.max(...logits);
      const sum = logits.reduce((total, x) => total + Math.exp(x - max), 0);
      logits.forEach((x, state) => {
        weights[state * rows! + row] = Math.exp(x - max) / sum;
      });
    }
    return weights;
  },
};
/** Its logarithm for blocks, [1 or g, 1, 1 or G, 1, St, 1]. */
function logGammaOf(kvHeads: number, group: number): Derivation {
  return {
    name: `log gamma ${kvHeads}x${group}`,
    shape: ([rows, states]) => (rows === 1 ? [1, 1, 1, 1, states!, 1] : [kvHeads, 1, group, 1, states!, 1]),
    apply(mix, [rows, states]) {
      const logs = mix.slice();
      for (let row = 0; row < rows!; row++) {
        const logits = mix.subarray(row * states!, (row + 1) * states!);
        const max = Math.max(...logits);
        const sum = Math.log(logits.reduce((total, x) => total + Math.exp(x - max), 0)) + max;
        logits.forEach((x, state) => {
          logs[row * states! + state] = x - sum;
        });
      }
      return logs;
    },
  };
}

/** Weight of the states against the exact part: [g, 1, G, 1, 1]. */
export function shareOf(kvHeads: number, group: number): Derivation {
  return {
    name: `share ${kvHeads}x${group}`,
    shape: () => [kvHeads, 1, group, 1, 1],
    apply: (logWeight) => logWeight.map(Math.exp),
  };
}
