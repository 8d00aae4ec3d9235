import { DslaError } from './errors.js';
import type { DualForm, LayerGraph, Node, NodeOf, Weight } from './graph.js';
import type { StatePart, StateSpec } from './state.js';

// What the states of the known nodes hold, and where.

/**
 * Keys (after rotation) and values [kvHeads, tokens, headDim]; token j at index j.
 * With a window it is a ring of sinks + size entries: token j < sinks at index j, others at sinks + (j - sinks) mod size.
 */
export function kvState(
  name: string,
  of: Pick<NodeOf<'softmaxAttention'>, 'kvHeads' | 'headDim' | 'window'>,
): StateSpec {
  const tokens = of.window ? of.window.sinks + of.window.size : 'tokens';
  const shape = [of.kvHeads, tokens, of.headDim] as const;
  return {
    name,
    kind: 'kv',
    parts: [
      { name: 'keys', dtype: 'compute', shape },
      { name: 'values', dtype: 'compute', shape },
    ],
  };
}

/** Width of phi(k), rows of a state matrix. `features` is F of the feature map. */
export function featureWidth(form: DualForm, features?: number): number {
  return form.featureMap ? 2 * (features ?? form.headDim) : form.headDim;
}

/**
 * `state` [states, kvHeads, featureWidth, headDim (+ 1 for the normaliser, the last column)] in float32: float16 cannot decay
 * slowly. With an exact part also the sinks and the ring of the tokens that have not entered yet, laid out as in kvState:
 * `keys` (after rotation, where `rope` is set), `values`, and their gate logits `gates` [sinks + window, gate width], so that a
 * token enters with its own gate.
 */
export function dualState(name: string, form: DualForm, features?: number): StateSpec {
  const { states, kvHeads, headDim, exact } = form;
  const state: StatePart = {
    name: 'state',
    dtype: 'f32',
    shape: [states, kvHeads, featureWidth(form, features), headDim + (form.normaliser ? 1 : 0)],
  };
  if (!exact) return { name, kind: 'dual', parts: [state] };
  const ring = exact.sinks + exact.window;
  return {
    name,
    kind: 'dual',
    parts: [
      state,
      { name: 'keys', dtype: 'compute', shape: [kvHeads, ring, headDim] },
      { name: 'values', dtype: 'compute', shape: [kvHeads, ring, headDim] },
      { name: 'gates', dtype: 'f32', shape: [ring, gateWidth(form)] },
    ],
  };
}

/** Width of the gate logits. */
export function gateWidth(form: Pick<DualForm, 'states' | 'kvHeads' | 'headDim' | 'gate'>): number {
  return form.states * form.kvHeads * (form.gate === 'vector' ? form.headDim : 1);
}

/** Where token j lies in a ring of `sinks + window` entries. */
export function ringIndex(token: number, window: number, sinks: number): number {
  return token < sinks ? token : sinks + ((token - sinks) % window);
}

/** The last kernel - 1 inputs of every channel, oldest first: [channels, kernel - 1]. */
export function convState(name: string, channels: number, kernel: number): StateSpec {
  return { name, kind: 'conv', parts: [{ name: 'inputs', dtype: 'compute', shape: [channels, kernel - 1] }] };
}

/** [channels, n] in float32. */
export function scanState(name: string, channels: number, n: number): StateSpec {
  return { name, kind: 'scan', parts: [{ name: 'state', dtype: 'f32', shape: [channels, n] }] };
}

/**
 * Checks that every state of a tape, which `inferWidths` has passed, is laid out as its node writes it.
 * @throws DslaError E_INPUT that names the tape and the node
 */
export function checkStates(graph: LayerGraph, shapeOf: (weight: Weight) => readonly number[]): void {
  const describe = ({ parts }: StateSpec) =>
    parts.map(({ name, dtype, shape }) => `${name} ${dtype} [${shape.join(', ')}]`).join('; ');
  graph.nodes.forEach((node, index) => {
    const want = stateOf(node, shapeOf);
    if (!want) return;
    const got = describe(graph.states.find(({ name }) => name === want.name)!);
    if (got === describe(want)) return;
    const where = `${graph.name} node ${index} (${node.op})`;
    throw new DslaError('E_INPUT', { where, rule: `state ${want.name} must hold ${describe(want)}`, got });
  });
}

/** The state that a node writes. */
function stateOf(node: Node, shapeOf: (weight: Weight) => readonly number[]): StateSpec | undefined {
  switch (node.op) {
    case 'softmaxAttention':
      return kvState(node.state, node);
    case 'dualLinearAttention':
    case 'foldState': {
      const { featureMap } = node.form;
      const name = node.op === 'foldState' ? node.to : node.state;
      return dualState(name, node.form, featureMap && shapeOf(featureMap.key)[1]);
    }
    case 'causalConv': {
      const [channels, , kernel] = shapeOf(node.weight) as [number, number, number];
      return convState(node.state, channels, kernel);
    }
    case 'selectiveScan': {
      const [heads, width, n] = shapeOf(node.logA) as [number, number, number];
      return scanState(node.state, heads * width, n);
    }
    default:
      return undefined;
  }
}
