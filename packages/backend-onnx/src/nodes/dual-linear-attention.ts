import { type DualForm, gateWidth, type NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Derivation, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { rotateBack, rotateTokens } from '../rope.js';
import { blocksOf, byHead, flat, floats, fromBlocks, reshapeTo, toBlocks } from './blocks.js';
import { featureMap, featuresOf } from './feature-map.js';
import { ownDual } from './own-dual.js';
import { narrow, typed, wide } from './precision.js';
import { exactScores, type Heads, type Kept, keep, leavesAt, leavingPositions, type Ring } from './ring.js';
import { chunkedScalar } from './scalar-gates.js';
import type { Sizes, StatePart, Streams } from './streams.js';
import { chunkedVector } from './vector-gates.js';

// In the comments: St states, g kv heads, G query heads a kv head, n blocks of C tokens, F features of phi.

type Dual = NodeOf<'dualLinearAttention'>;

/**
 * Many tokens of one row: q [1, T, heads*hd], k and v [1, T, kvHeads*hd] of the compute type, gates [1, T, gate width], all of the compute
 * type -> [1, T, heads*hd] of the compute type.
 */
export function dualLinearAttention(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref {
  const own = ownDual(node, lowering, q, k, v, gates);
  return own === undefined ? inGraph(node, lowering, q, k, v, gates) : normedHeads(node, lowering, own);
}

/** By operators of ONNX. */
function inGraph(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref {
  const { graph } = lowering;
  const { heads, form, scale } = node;
  const { kvHeads, headDim, rope, normaliser, featureMap: map } = form;
  const group = heads / kvHeads;
  const sizes = sizesOf(form, lowering, group, scale);
  const { type } = sizes;
  const [queries, keys, values] = [q, k, v].map((x) => typed(lowering, x, type)) as [Ref, Ref, Ref];
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope, type) : x);
  const forState = (x: Ref, of: number): Ref => (form.ropeInState ? turned(x, of) : x);
  const inBlocks = (x: Ref): Ref => toBlocks(lowering, x, kvHeads, headDim, group);

  const logits = typed(lowering, gates, gateType(form, sizes));
  const memory = form.exact && remember(node, form.exact, lowering, turned(keys, kvHeads), values, logits);
  const tokens = memory
    ? leaving(form, memory, lowering, type)
    : arriving(form, lowering, forState(keys, kvHeads), values, logits, gateType(form, sizes));
  const streams: Streams = {
    q: featureMap(lowering, inBlocks(forState(queries, heads)), map?.query, sizes, group),
    k: masked(lowering, featureMap(lowering, tokens.k, map?.key, sizes), tokens.mask, type),
    v: normaliser ? withOnes(lowering, tokens.v, sizes, headDim) : tokens.v,
    decays: tokens.decays,
    logGamma: lowering.weight(node.mix, logGammaOf(kvHeads, group, sizes.scale)),
  };
  const chunked = form.gate === 'scalar' ? chunkedScalar : chunkedVector;
  let total = chunked(lowering, streams, sizes, statePart(node.state, form, lowering, sizes)); // [g, n, G, C, V]
  if (memory) {
    const { logWeight } = form.exact!;
    const share = narrow(graph, lowering.weight(logWeight, shareOf(kvHeads, group, sizes)), type);
    const excess = lowering.weight(logWeight, excessOf(kvHeads, group, sizes));
    const rotated = inBlocks(turned(queries, heads));
    const exact = exactPart(memory, lowering, rotated, excess, { kvHeads, group, headDim, scale }, sizes);
    total = graph.op('Add', [exact, graph.op('Mul', [total, share])]);
  }
  const out = normaliser ? divided(lowering, total, headDim) : total;
  const normed = node.outputNorm ? outputNorm(node, lowering, wide(graph, out, type)) : out;
  const narrowed = (node.outputNorm ? 'float' : type) === lowering.dialect.compute ? normed : lowering.compute(normed);
  return fromBlocks(lowering, narrowed, heads * headDim);
}

/**
 * With a normaliser alone products are in float: what they are divided by may be tiny. Beside an exact part it is at least 1, and in
 * float16 sums of features stay well below its bound for as long as the scale says.
 */
export function sizesOf(form: DualForm, lowering: Lowering, group: number, scale: number): Sizes {
  const { states, kvHeads, headDim, normaliser, featureMap: map, exact, gate } = form;
  const { compute } = lowering.dialect;
  const type = normaliser || map ? (exact ? compute : 'float') : compute;
  // Rows of products in float16 begin at multiples of 16 bytes.
  const ones = normaliser ? (type === 'float16' ? 8 : 1) : 0;
  return {
    states,
    kvHeads,
    group,
    features: featuresOf(lowering, map?.key, headDim),
    columns: headDim + ones,
    gate,
    type,
    scale: exact ? 1 / 64 : normaliser ? 1 : scale,
  };
}

/** What holds the states, with one column of ones, or none, whose sums they are. */
function statePart(
  name: string,
  form: DualForm,
  lowering: Lowering,
  { states, kvHeads, features, columns }: Sizes,
): StatePart {
  const { graph } = lowering;
  const held = form.headDim + (form.normaliser ? 1 : 0);
  const dims = [states, kvHeads, features, held];
  const past = lowering.past(name, 0, dims);
  return {
    past: columns === held ? past : graph.op('Pad', [past, graph.ints([0, columns - held]), '', graph.ints([3])]),
    next: (value) => lowering.present(name, 0, columns === held ? value : graph.slice(value, 3, 0, held), dims),
  };
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
function arriving(form: DualForm, lowering: Lowering, k: Ref, v: Ref, gates: Ref, type: Sizes['type']): Tokens {
  const { kvHeads, headDim } = form;
  const logits = reshapeTo(lowering, gates, ['blocks', 'size', gateWidth(form)]);
  return {
    k: toBlocks(lowering, k, kvHeads, headDim),
    v: toBlocks(lowering, v, kvHeads, headDim),
    decays: decaysOf(form, lowering, logits, type),
  };
}

function masked({ graph }: Lowering, k: Ref, mask: Ref | undefined, type: Sizes['type']): Ref {
  return mask ? graph.op('Mul', [k, narrow(graph, mask, type)]) : k;
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
    const where = { ring, state, part, axis: 1, dims } as const;
    return keep(lowering, where, byHead(lowering, x, kvHeads, headDim));
  };
  return {
    ring,
    keys: heads(1, k),
    values: heads(2, v),
    gates: keep(
      lowering,
      { ring, state, part: 3, axis: 0, dims: [entries, width] },
      lowering.graph.reshape(gates, [-1, width]),
    ),
  };
}

/** The tokens that leave the window: at query t of the step the one that is `window` older. */
function leaving(
  form: DualForm,
  { ring, keys, values, gates }: Memory,
  lowering: Lowering,
  type: Sizes['type'],
): Tokens {
  const mask = lowering.control(maskControl(`leaving ${ring.sinks}+${ring.window}`, leavesAt(ring)));
  const where = (): Ref => lowering.control(flat(leavingPositions(ring)));
  const { rope, ropeInState, kvHeads, headDim } = form;
  return {
    k:
      rope && !ropeInState
        ? rotateBack(lowering, keys.leaving(), where(), kvHeads, headDim, rope, type)
        : keys.leaving(),
    v: values.leaving(),
    decays: decaysOf(form, lowering, gates.leaving(), 'float', mask),
    mask,
  };
}

/** What the gates of a form are computed with: many, one a feature, with the other numbers. */
export function gateType({ gate }: DualForm, { type }: Sizes): Sizes['type'] {
  return gate === 'vector' ? type : 'float';
}

/** Gate logits [n, C, gate width] of a type -> log decays [g, n, C, St, hd or 1], 0 where the mask says that no token enters. */
export function decaysOf(form: DualForm, { graph }: Lowering, logits: Ref, type: Sizes['type'], mask?: Ref): Ref {
  const width = form.gate === 'vector' ? form.headDim : 1;
  const soft = graph.op('Softplus', [graph.op('Neg', [logits])]); // -logSigmoid
  const rate = graph.floats(-1 / form.temperature);
  const held = graph.op('Mul', [soft, narrow(graph, mask ? graph.op('Mul', [mask, rate]) : rate, type)]);
  return graph.transpose(graph.reshape(held, [0, 0, form.states, form.kvHeads, width]), [3, 0, 1, 2, 4]);
}

/**
 * sum over the exact set of e^(s - m - excess) [v, 1]: [g, n, G, C, V]; excess [g, 1, G, 1, 1]. Scores are in float, which their
 * exponentials need.
 */
function exactPart(
  { ring, keys, values }: Memory,
  lowering: Lowering,
  q: Ref,
  excess: Ref,
  heads: Heads,
  sizes: Sizes,
): Ref {
  const { graph } = lowering;
  const { kvHeads, group, type } = sizes;
  const scores = exactScores(lowering, ring, wide(graph, q, type), wide(graph, keys.seen(), type), heads);
  const max = graph.op('ReduceMax', [scores, graph.ints([-1])], { keepdims: 1 });
  const byHead = reshapeTo(lowering, max, [kvHeads, 'blocks', group, 'size', 1]);
  const bound = graph.reshape(graph.op('Add', [byHead, excess]), [0, 0, -1, 1]);
  const weights = narrow(graph, graph.op('Exp', [graph.op('Sub', [scores, bound])]), type);
  const sums = graph.matmul(weights, withOnes(lowering, values.seen(), sizes, heads.headDim));
  return graph.reshape(sums, [0, 0, heads.group, -1, sizes.columns]);
}

/** Columns of ones behind the others. */
export function withOnes({ graph }: Lowering, x: Ref, { columns, type }: Sizes, headDim: number): Ref {
  const one = narrow(graph, graph.floats(1), type);
  return graph.op('Pad', [x, graph.ints([0, columns - headDim]), one, graph.ints([-1])]);
}

export function divided({ graph }: Lowering, total: Ref, headDim: number): Ref {
  return graph.op('Div', [graph.slice(total, -1, 0, headDim), graph.slice(total, -1, headDim, headDim + 1)]);
}

export function outputNorm({ outputNorm: norm }: Dual, { graph, floatWeight }: Lowering, out: Ref): Ref {
  if (!norm) return out;
  const attributes = { axis: -1, epsilon: float(norm.eps), stash_type: 1 };
  return graph.op('SimplifiedLayerNormalization', [out, floatWeight(norm.weight)], attributes);
}

/** The norm of every head, if any: [.., .., heads*hd] of the compute type. */
export function normedHeads(node: Dual, lowering: Lowering, out: Ref): Ref {
  if (!node.outputNorm) return out;
  const { graph } = lowering;
  const { heads, form } = node;
  const byHead = graph.reshape(lowering.float(out), [0, 0, heads, form.headDim]);
  return lowering.compute(graph.reshape(outputNorm(node, lowering, byHead), [0, 0, -1]));
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

/** Weight of the states against the exact part over the scale that they have, as far as float16 holds it: [g, 1, G, 1, 1]. */
function shareOf(kvHeads: number, group: number, { scale }: Pick<Sizes, 'scale'>): Derivation {
  return {
    name: `share ${kvHeads}x${group} over ${scale}`,
    shape: () => [kvHeads, 1, group, 1, 1],
    apply: (logWeight) => logWeight.map((log) => Math.exp(Math.min(log - Math.log(scale), largest))),
  };
}

/** By how much the logarithm of that weight is larger: the exact part is so much smaller. */
function excessOf(kvHeads: number, group: number, { scale }: Sizes): Derivation {
  return {
    name: `excess ${kvHeads}x${group} over ${scale}`,
    shape: () => [kvHeads, 1, group, 1, 1],
    apply: (logWeight) => logWeight.map((log) => Math.max(0, log - Math.log(scale) - largest)),
  };
}

const largest = 10;
