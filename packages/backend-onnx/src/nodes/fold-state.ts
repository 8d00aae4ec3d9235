import { gateWidth, type NodeOf, ringIndex } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { rotateBack } from '../rope.js';
import { ints } from './blocks.js';
import { decaysOf, withOne } from './dual-linear-attention.js';
import { featuresOf, featuresOfCache } from './feature-map.js';
import type { Ring } from './ring.js';

/**
 * The dual state of a row from its cache of P tokens, in closed form: S_i = sum_j exp(sum of a_i after j) phi(k_j) v_j^T, one
 * product over the tokens that have entered; with an exact part its ring is gathered from the cache.
 */
export function foldState(node: NodeOf<'foldState'>, lowering: Lowering): void {
  const { graph, control } = lowering;
  const { form } = node;
  const { states, kvHeads, headDim, exact } = form;
  const entries = lowering.entriesOf(node.from);
  const cache = (part: number): Ref => lowering.past(node.from, part, [kvHeads, entries, headDim]);

  const { tokens, mask } = entered(exact);
  const inside = control(mask); // [1, E, 1]
  const gather = (part: number): Ref => lowering.float(graph.op('Gather', [cache(part), control(tokens)], { axis: 1 })); // [g, 1, E, hd]
  // Masked by selection: where no token has entered, an index names memory that may hold anything.
  const held = (x: Ref): Ref => graph.op('Where', [inside, x, graph.floats(0)]);
  const [keys, values] = [held(gather(0)), held(gather(1))];
  const plain = unrotated(node, lowering, keys, tokens);
  const gates = graph.reshape(gatesOf(node, lowering, plain, values), [1, -1, gateWidth(form)]);
  const decays = decaysOf(form, lowering, gates, graph.cast(inside, 'float')); // [g, 1, E, St, hd or 1]
  const after = graph.op('CumSum', [decays, graph.ints(2)], { exclusive: 1, reverse: 1 });
  const phi = held(featuresOfCache(lowering, form.ropeInState ? keys : plain, form.featureMap?.key));
  const columns = form.normaliser ? withOne(lowering, values) : values;
  const features = featuresOf(lowering, form.featureMap?.key, headDim);
  const width = headDim + (form.normaliser ? 1 : 0);
  const weighted = graph.op('Mul', [graph.op('Unsqueeze', [phi, graph.ints([3])]), graph.op('Exp', [after])]); // [g, 1, E, St, F]
  const state = graph.matmul(graph.reshape(weighted, [0, 0, 0, states * features]), columns, { transA: true });
  const byHead = graph.reshape(state, [kvHeads, states, features, width]);
  lowering.present(node.to, 0, graph.transpose(byHead, [1, 0, 2, 3]), [states, kvHeads, features, width]);
  if (exact) foldRing(node, exact, lowering, cache);
}

/** Keys, values and gates of the tokens that have not entered. */
function foldRing(node: NodeOf<'foldState'>, ring: Ring, lowering: Lowering, cache: (part: number) => Ref): void {
  const { graph, control } = lowering;
  const { kvHeads, headDim } = node.form;
  const entries = ring.sinks + ring.window;
  const tokens = ringTokens(ring);
  const gather = (part: number): Ref => graph.op('Gather', [cache(part), control(tokens)], { axis: 1 }); // [g, 1, entries, hd]
  const [keys, values] = [gather(0), gather(1)];
  const dims = [kvHeads, entries, headDim];
  lowering.present(node.to, 1, graph.reshape(keys, dims), dims);
  lowering.present(node.to, 2, graph.reshape(values, dims), dims);
  const [k, v] = [keys, values].map(lowering.float) as [Ref, Ref];
  const gates = gatesOf(node, lowering, unrotated(node, lowering, k, tokens), v);
  lowering.present(node.to, 3, gates, [entries, gateWidth(node.form)]);
}

/** Keys [g, 1, E, hd] of the tokens that a control names, with their rotation undone. */
function unrotated({ form }: NodeOf<'foldState'>, lowering: Lowering, keys: Ref, tokens: Control): Ref {
  if (!form.rope) return keys;
  return rotateBack(lowering, keys, lowering.control(tokens), form.kvHeads, form.headDim, form.rope);
}

/** Gate logits W u + b [E, gate width] of keys (plain) and values [g, 1, E, hd]. */
function gatesOf(node: NodeOf<'foldState'>, lowering: Lowering, keys: Ref, values: Ref): Ref {
  const { graph, floatWeight } = lowering;
  const { kvHeads, headDim } = node.form;
  const source = graph.transpose(node.gateSource === 'value' ? values : keys, [1, 2, 0, 3]);
  const operands = [graph.reshape(source, [-1, kvHeads * headDim]), floatWeight(node.gateWeight)];
  if (node.gateBias !== undefined) operands.push(floatWeight(node.gateBias));
  return graph.op('Gemm', operands, { transB: 1 });
}

/** The tokens that have entered the states, at least one: int64 [1, E], and which of them exist: bool [1, E, 1]. */
function entered(exact: Ring | undefined): { readonly tokens: Control; readonly mask: Control } {
  const first = exact?.sinks ?? 0;
  const key = `entered ${first} ${exact?.window ?? 0}`;
  const countOf = (past: number): number => Math.max(0, past - (exact?.window ?? 0) - first);
  return {
    tokens: {
      key,
      type: 'int64',
      dims: [1, 'entered'],
      make: ({ past }) => ints([1, Math.max(countOf(past), 1)], (at) => (countOf(past) > 0 ? first + at : 0)),
    },
    mask: {
      key: `mask of ${key}`,
      type: 'bool',
      dims: [1, 'entered', 1],
      make: ({ past }) => ({
        dims: [1, Math.max(countOf(past), 1), 1],
        data: new Uint8Array(Math.max(countOf(past), 1)).fill(countOf(past) > 0 ? 1 : 0),
      }),
    },
  };
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
