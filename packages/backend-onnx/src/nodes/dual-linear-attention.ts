import { type DualForm, gateWidth, type NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Derivation, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { rotateBack, rotateTokens } from '../rope.js';
import { blocksOf, byHead, flat, floats, fromBlocks, reshapeTo, toBlocks } from './blocks.js';
import { featureMap, featuresOf } from './feature-map.js';
import { exactScores, type Heads, type Kept, keep, leavesAt, leavingPositions, type Ring } from './ring.js';
import { chunkedScalar } from './scalar-gates.js';
import type { Sizes, Streams } from './streams.js';
import { chunkedVector } from './vector-gates.js';

// In the comments: St states, g kv heads, G query heads a kv head, n blocks of C tokens, F features of phi.

type Dual = NodeOf<'dualLinearAttention'>;

/**
 * Many tokens of one row: q [1, T, heads*hd], k and v [1, T, kvHeads*hd] of the compute type, gates [1, T, gate width] in float ->
 * [1, T, heads*hd] of the compute type. Without a normaliser products are of the compute type, with one in float: what is divided
 * may be tiny.
 */
export function dualLinearAttention(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref {
  const { graph } = lowering;
  const { heads, form, scale } = node;
  const { kvHeads, headDim, rope, normaliser, featureMap: map } = form;
  const group = heads / kvHeads;
  const type = map || normaliser ? 'float' : lowering.dialect.compute;
  const [queries, keys, values] = [q, k, v].map(map || normaliser ? lowering.float : (x) => x) as [Ref, Ref, Ref];
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope, type) : x);
  const forState = (x: Ref, of: number): Ref => (form.ropeInState ? turned(x, of) : x);

  const memory = form.exact && remember(node, form.exact, lowering, turned(keys, kvHeads), values, gates);
  const tokens = memory
    ? leaving(form, memory, lowering)
    : arriving(form, lowering, forState(keys, kvHeads), values, gates);
  const sizes: Sizes = {
    states: form.states,
    kvHeads,
    group,
    features: featuresOf(lowering, map?.key, headDim),
    columns: headDim + (normaliser ? 1 : 0),
    gate: form.gate,
    type,
    scale: normaliser ? 1 : scale,
  };
  const streams: Streams = {
    q: featureMap(
      lowering,
      toBlocks(lowering, forState(queries, heads), kvHeads, headDim, group),
      map?.query,
      kvHeads,
      group,
    ),
    k: masked(lowering, featureMap(lowering, tokens.k, map?.key, kvHeads), tokens.mask),
    v: normaliser ? withOne(lowering, tokens.v) : tokens.v,
    decays: tokens.decays,
    logGamma: lowering.weight(node.mix, logGammaOf(kvHeads, group, sizes.scale)),
  };
  const dims = [form.states, kvHeads, sizes.features, sizes.columns];
  const chunked = form.gate === 'scalar' ? chunkedScalar : chunkedVector;
  let total = chunked(lowering, streams, sizes, {
    past: lowering.past(node.state, 0, dims),
    next: (value) => lowering.present(node.state, 0, value, dims),
  }); // [g, n, G, C, hd (+ 1)]
  if (memory) {
    const share = lowering.weight(form.exact!.logWeight, shareOf(kvHeads, group));
    const rotated = toBlocks(lowering, turned(queries, heads), kvHeads, headDim, group);
    total = graph.op('Add', [
      exactPart(memory, lowering, rotated, { kvHeads, group, headDim, scale }),
      graph.op('Mul', [total, share]),
    ]);
  }
  const out = normaliser ? divided(lowering, total, headDim) : total;
  const narrow = type === lowering.dialect.compute ? (x: Ref) => x : lowering.compute;
  const normed =
    node.outputNorm && type === 'float16'
      ? lowering.compute(outputNorm(node, lowering, lowering.float(out)))
      : narrow(outputNorm(node, lowering, out));
  return fromBlocks(lowering, normed, heads * headDim);
}

/** Tokens that enter the states, in blocks. */
interface Tokens {
  /** [g, n, C, hd], as the state wants them */
  readonly k: Ref;
  /** [g, n, C, hd] */
  readonly v: Ref;
  /** [g, n, C, St, hd or 1] */
  readonly decays: Ref;
  /** [n, C, 1]: 1 where a token enters, 0 elsewhere; absent where they all do */
  readonly mask?: Ref;
}

/** The tokens of the step themselves. */
function arriving(form: DualForm, lowering: Lowering, k: Ref, v: Ref, gates: Ref): Tokens {
  const { kvHeads, headDim } = form;
  const logits = reshapeTo(lowering, gates, ['blocks', 'size', gateWidth(form)]);
  return {
    k: toBlocks(lowering, k, kvHeads, headDim),
    v: toBlocks(lowering, v, kvHeads, headDim),
    decays: decaysOf(form, lowering, logits),
  };
}

function masked({ graph }: Lowering, k: Ref, mask: Ref | undefined): Ref {
  return mask ? graph.op('Mul', [k, mask]) : k;
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
  const mask = lowering.control(maskControl(`leaving ${ring.sinks}+${ring.window}`, leavesAt(ring)));
  const where = (): Ref => lowering.control(flat(leavingPositions(ring)));
  const { rope, ropeInState, kvHeads, headDim } = form;
  return {
    k: rope && !ropeInState ? rotateBack(lowering, keys.leaving(), where(), kvHeads, headDim, rope) : keys.leaving(),
    v: values.leaving(),
    decays: decaysOf(form, lowering, gates.leaving(), mask),
    mask,
  };
}

/** Gate logits [n, C, gate width] in float -> log decays [g, n, C, St, hd or 1], 0 where the mask says that no token enters. */
export function decaysOf(form: DualForm, { graph }: Lowering, logits: Ref, mask?: Ref): Ref {
  const width = form.gate === 'vector' ? form.headDim : 1;
  const soft = graph.op('Softplus', [graph.op('Neg', [logits])]); // -logSigmoid
  const rate = graph.floats(-1 / form.temperature);
  const held = graph.op('Mul', [soft, mask ? graph.op('Mul', [mask, rate]) : rate]);
  return graph.transpose(graph.reshape(held, [0, 0, form.states, form.kvHeads, width]), [3, 0, 1, 2, 4]);
}

/** sum over the exact set of e^(s - m) [v, 1]: [g, n, G, C, hd + 1] */
function exactPart({ ring, keys, values }: Memory, lowering: Lowering, q: Ref, heads: Heads): Ref {
  const { graph } = lowering;
  const scores = exactScores(lowering, ring, q, keys.seen(), heads);
  const max = graph.op('ReduceMax', [scores, graph.ints([-1])], { keepdims: 1 });
  const weights = graph.op('Exp', [graph.op('Sub', [scores, max])]);
  const sums = graph.matmul(weights, withOne(lowering, values.seen()));
  return graph.reshape(sums, [0, 0, heads.group, -1, heads.headDim + 1]);
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
  holds: (t: number, row: { readonly past: number; readonly count: number }) => boolean,
): Control {
  return {
    key: `mask of ${key}`,
    type: 'float',
    dims: ['blocks', 'size', 1],
    make(row) {
      const { blocks, size } = blocksOf(row.count);
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
/** The logarithm of them, times a scale, for blocks: [1 or g, 1, G, 1, St]. */
function logGammaOf(kvHeads: number, group: number, scale: number): Derivation {
  return {
    name: `log gamma ${kvHeads}x${group} of ${scale}`,
    shape: ([rows, states]) => [rows === 1 ? 1 : kvHeads, 1, group, 1, states!],
    apply(mix, [rows, states]) {
      const logs = new Float32Array((rows === 1 ? group : rows!) * states!);
      for (let at = 0; at < logs.length; at += states!) {
        const from = rows === 1 ? 0 : at;
        const logits = mix.subarray(from, from + states!);
        const max = Math.max(...logits);
        const sum = Math.log(logits.reduce((total, x) => total + Math.exp(x - max), 0)) + max;
        for (const [state, logit] of logits.entries()) logs[at + state] = logit - sum + Math.log(scale);
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
