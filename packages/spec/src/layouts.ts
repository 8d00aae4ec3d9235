import type { DualForm, NodeOf } from './graph.js';
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
