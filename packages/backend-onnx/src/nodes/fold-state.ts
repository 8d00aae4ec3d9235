import { gateWidth, type NodeOf, ringIndex } from '@dsla/spec';
import { replayOperator } from '../cuda/dual-fold.js';
import { absorbOperator } from '../cuda/dual-operator.js';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { ropeTables, rotateBack } from '../rope.js';
import { blockSize, flat, ints, reshapeTo } from './blocks.js';
import { decaysOf, gateType, sizesOf, withOnes } from './dual-linear-attention.js';
import { featureMap, featuresOf } from './feature-map.js';
import { hasOwnDual, runOwn } from './own-dual.js';
import { narrow, typed } from './precision.js';
import type { Ring } from './ring.js';
import { absorbScalar } from './scalar-gates.js';
import type { Sizes } from './streams.js';
import { absorbVector } from './vector-gates.js';

/**
 * The dual state of a row from its cache of P tokens: the tokens that have entered, in blocks, added to states of zeros as a prompt
 * would be; with an exact part its ring is gathered from the cache. In the comments: letters as in streams.ts.
 */
export function foldState(node: NodeOf<'foldState'>, lowering: Lowering): void {
  const { kvHeads, headDim, exact, featureMap: map } = node.form;
  const entries = lowering.entriesOf(node.from);
  const cache = (part: number): Ref => lowering.past(node.from, part, [kvHeads, entries, headDim]);
  const features = featuresOf(lowering, map?.key, headDim);
  const fold = hasOwnDual(lowering.dialect, { form: node.form, features }) ? foldOwn : foldInGraph;
  fold(node, lowering, cache, features);
  if (exact) foldRing(node, exact, lowering, cache);
}

type Cache = (part: number) => Ref;

/** By operators of our own, but for the gates. */
function foldOwn(node: NodeOf<'foldState'>, lowering: Lowering, cache: Cache, features: number): void {
  const { graph } = lowering;
  const { form, gateSource } = node;
  const { rope, ropeInState, exact, featureMap: map } = form;
  const tables = rope ? ropeTables(rope) : undefined;
  const count = lowering.control(enteredCount(exact));
  const [plain, v, rotated] = graph.own(replayOperator(form), [
    cache(0),
    cache(1),
    lowering.control(enteredTokens(exact)),
    count,
    ...(tables ? [lowering.table(tables.cos), lowering.table(tables.sin)] : []),
  ]);
  const made = runOwn(absorbOperator(form, features), lowering, {
    k: () => (ropeInState && rotated ? rotated : plain!),
    v: () => v!,
    gates: () => gateLogits(node, lowering, gateSource === 'value' ? v! : plain!),
    past: () => count,
    mapK: () => lowering.weight(map!.key),
  });
  const { value, dims } = made.get('after')!;
  lowering.present(node.to, 0, value, dims);
}

function foldInGraph(node: NodeOf<'foldState'>, lowering: Lowering, cache: Cache): void {
  const { graph } = lowering;
  const { form } = node;
  const { states, kvHeads, headDim, exact } = form;

  const { tokens, mask, blocks } = entered(exact, lowering);
  const sizes = sizesOf(form, lowering, 1, 1);
  const { type } = sizes;
  const inside = lowering.control(mask); // [n, C, 1]
  const zero = narrow(graph, graph.floats(0), type);
  // Masked by selection: where no token has entered, an index names memory that may hold anything.
  const chosen = (x: Ref): Ref => graph.op('Where', [inside, x, zero]);
  const [keys, values] = [0, 1].map((part) => {
    const gathered = graph.op('Gather', [cache(part), lowering.control(tokens)], { axis: 1 }); // [g, n, C, hd]
    return chosen(typed(lowering, gathered, type));
  }) as [Ref, Ref];
  const plain = unrotated(node, lowering, keys, flat(tokens), type);
  const gates = typed(lowering, gatesOf(node, lowering, plain, values, type), gateType(form, sizes));
  const logits = reshapeTo(blocks, gates, ['blocks', 'size', gateWidth(form)]);
  const streams = {
    k: chosen(featureMap(blocks, form.ropeInState ? keys : plain, form.featureMap?.key, sizes)),
    v: form.normaliser ? withOnes(lowering, values, sizes, headDim) : values,
    decays: decaysOf(form, lowering, logits, gateType(form, sizes), graph.cast(inside, 'float')),
  };
  const shape = [states, kvHeads, sizes.features, sizes.columns];
  const held = headDim + Number(form.normaliser);
  const dims = [states, kvHeads, sizes.features, held];
  const absorb = form.gate === 'scalar' ? absorbScalar : absorbVector;
  absorb(blocks, streams, sizes, {
    past: graph.op('Expand', [graph.floats(0), graph.ints(shape)]),
    next: (value) =>
      lowering.present(node.to, 0, held === sizes.columns ? value : graph.slice(value, 3, 0, held), dims),
  });
}

/** Keys, values and gates of the tokens that have not entered. */
function foldRing(node: NodeOf<'foldState'>, ring: Ring, lowering: Lowering, cache: Cache): void {
  const { graph, control } = lowering;
  const { kvHeads, headDim } = node.form;
  const entries = ring.sinks + ring.window;
  const tokens = ringTokens(ring);
  const gather = (part: number): Ref => graph.op('Gather', [cache(part), control(tokens)], { axis: 1 }); // [g, 1, E, hd]
  const [keys, values] = [gather(0), gather(1)];
  const dims = [kvHeads, entries, headDim];
  lowering.present(node.to, 1, graph.reshape(keys, dims), dims);
  lowering.present(node.to, 2, graph.reshape(values, dims), dims);
  const { compute } = lowering.dialect;
  const gates = gatesOf(node, lowering, unrotated(node, lowering, keys, tokens, compute), values, compute);
  lowering.present(node.to, 3, lowering.float(gates), [entries, gateWidth(node.form)]);
}

/** Keys [g, ...tokens, hd] of a type, of the tokens that a control names, [1, tokens], with their rotation undone. */
function unrotated(
  { form }: NodeOf<'foldState'>,
  lowering: Lowering,
  keys: Ref,
  tokens: Control,
  type: Sizes['type'],
): Ref {
  if (!form.rope) return keys;
  return rotateBack(lowering, keys, lowering.control(tokens), form.kvHeads, form.headDim, form.rope, type);
}

/** Gate logits W u + b of the compute type, [tokens, gate width], of keys (plain) and values of a type, [g, ...tokens, hd]: computed as in a prompt. */
function gatesOf(node: NodeOf<'foldState'>, lowering: Lowering, keys: Ref, values: Ref, type: Sizes['type']): Ref {
  const { graph } = lowering;
  const { kvHeads, headDim } = node.form;
  const source = graph.transpose(node.gateSource === 'value' ? values : keys, [1, 2, 0, 3]);
  const rows = graph.reshape(source, [-1, kvHeads * headDim]);
  return gateLogits(node, lowering, type === lowering.dialect.compute ? rows : lowering.compute(rows));
}

/** W u + b: u [.., g*hd] of the compute type -> [.., gate width] */
function gateLogits({ gateWeight, gateBias }: NodeOf<'foldState'>, lowering: Lowering, source: Ref): Ref {
  const logits = lowering.product(source, gateWeight);
  return gateBias === undefined ? logits : lowering.graph.op('Add', [logits, lowering.weight(gateBias)]);
}

/** How many tokens of a cache have entered the states. */
function enteredOf(exact: Ring | undefined, past: number): number {
  return Math.max(0, past - (exact?.window ?? 0) - (exact?.sinks ?? 0));
}

/** int64 [1] */
function enteredCount(exact: Ring | undefined): Control {
  return {
    key: `how many entered ${exact?.sinks ?? 0} ${exact?.window ?? 0}`,
    type: 'int64',
    dims: [1],
    make: ({ past }) => ints([1], () => enteredOf(exact, past)),
  };
}

/** int64 [1, T]: where they are; one where there is none. */
function enteredTokens(exact: Ring | undefined): Control {
  const sinks = exact?.sinks ?? 0;
  return {
    key: `which entered ${sinks} ${exact?.window ?? 0}`,
    type: 'int64',
    dims: [1, 'entered'],
    make({ past }) {
      const length = Math.max(1, enteredOf(exact, past));
      return ints([1, length], (at) => sinks + at);
    },
  };
}

/** The tokens that have entered the states, in whole blocks. */
function entered(exact: Ring | undefined, lowering: Lowering) {
  const first = exact?.sinks ?? 0;
  const key = `entered ${first} ${exact?.window ?? 0}`;
  const countOf = (past: number): number => enteredOf(exact, past);
  const blocksOf = (past: number): number => Math.max(1, Math.ceil(countOf(past) / blockSize));
  const tokens: Control = {
    key,
    type: 'int64',
    dims: ['blocks', blockSize],
    make: ({ past }) => ints([blocksOf(past), blockSize], (at) => (at < countOf(past) ? first + at : 0)),
  };
  const mask: Control = {
    key: `mask of ${key}`,
    type: 'bool',
    dims: ['blocks', blockSize, 1],
    make: ({ past }) => ({
      dims: [blocksOf(past), blockSize, 1],
      data: Uint8Array.from({ length: blocksOf(past) * blockSize }, (_, at) => Number(at < countOf(past))),
    }),
  };
  /** What is made for blocks of a row's new tokens is made for these. */
  const blocks: Lowering = {
    ...lowering,
    control: (control) =>
      lowering.control({
        ...control,
        key: `${control.key} of ${key}`,
        make: ({ past }) => control.make({ past: 0, count: blocksOf(past) * blockSize }),
      }),
  };
  return { tokens, mask, blocks };
}

/** int64 [1, sinks + window]: the token that every entry holds; the first where there is none. */
function ringTokens({ window, sinks }: Ring): Control {
  return {
    key: `ring ${sinks}+${window} of the cache`,
    type: 'int64',
    dims: [1, sinks + window],
    make({ past }) {
      const tokens = new Array<number>(sinks + window).fill(0);
      for (let token = 0; token < Math.min(past, sinks); token++) tokens[token] = token;
      for (let token = Math.max(past - window, sinks); token < past; token++)
        tokens[ringIndex(token, window, sinks)] = token;
      return ints([1, sinks + window], (entry) => tokens[entry]!);
    },
  };
}
