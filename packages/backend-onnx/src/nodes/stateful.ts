import type { Named, Node, NodeOf, StateStore } from '@dsla/spec';
import type { Dialect } from '../dialect.js';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import { pieceOfBlocks } from './blocks.js';
import { causalConv } from './causal-conv.js';
import { dualDecode } from './dual-decode.js';
import { dualLinearAttention, normedHeads } from './dual-linear-attention.js';
import { foldState } from './fold-state.js';
import { hasOwnDual, ownDualStep } from './own-dual.js';
import { scanPiece, selectiveScan } from './selective-scan.js';
import { fused, softmaxAttention, softmaxPiece } from './softmax-attention.js';

/** Nodes that read or write a state. */
export type Stateful = Extract<
  Node,
  { op: 'softmaxAttention' | 'dualLinearAttention' | 'causalConv' | 'selectiveScan' | 'foldState' }
>;

const stateful: Readonly<Record<Stateful['op'], true>> = {
  softmaxAttention: true,
  dualLinearAttention: true,
  causalConv: true,
  selectiveScan: true,
  foldState: true,
};

export function isStateful(node: Node): node is Stateful {
  return node.op in stateful;
}

/** Adds a node to a model; the result is its value, [T, width], if it has one. What has to do with gates is computed in float. */
export function lowerStateful(node: Stateful, lowering: Lowering, value: (index: number) => Ref): Ref | undefined {
  const { float, compute } = lowering;
  const own = (index: number): Ref => float(value(index));
  switch (node.op) {
    case 'softmaxAttention':
      return softmaxAttention(node, lowering, value(node.q), value(node.k), value(node.v));
    case 'dualLinearAttention':
      if (!lowering.decode)
        return dualLinearAttention(node, lowering, value(node.q), value(node.k), value(node.v), value(node.gates));
      return dualOfTokens(node, lowering, value);
    case 'causalConv':
      return causalConv(node, lowering, value(node.x));
    case 'selectiveScan':
      return compute(selectiveScan(node, lowering, own(node.x), own(node.dt), own(node.b), own(node.c)));
    case 'foldState':
      foldState(node, lowering);
      return undefined;
  }
}

function dualOfTokens(node: NodeOf<'dualLinearAttention'>, lowering: Lowering, value: (index: number) => Ref): Ref {
  const { float, compute } = lowering;
  const [q, k, v, gates] = [node.q, node.k, node.v, node.gates].map(value) as [Ref, Ref, Ref, Ref];
  const own = ownDualStep(node, lowering, q, k, v, gates);
  if (own !== undefined) return normedHeads(node, lowering, own);
  return compute(dualDecode(node, lowering, float(q), float(k), float(v), float(gates)));
}

/** Whether one run may serve one token of each of several rows. */
export function joinsRows(node: Stateful, dialect: Dialect): boolean {
  if (node.op === 'softmaxAttention') return node.window !== undefined || fused(node, dialect);
  return node.op !== 'foldState';
}

/** How many of the `left` tokens of a row the next run serves, so that its intermediate values stay small. */
export function pieceOf(
  node: Stateful,
  dialect: Dialect,
  states: Named<{ readonly store: StateStore }>,
  left: number,
): number {
  switch (node.op) {
    case 'softmaxAttention':
      if (node.window) return pieceOfBlocks(left, longest);
      return Math.min(left, softmaxPiece(node, dialect, states[node.state]!.store.tokens));
    case 'dualLinearAttention': {
      const features = Number(states[node.state]!.store.spec.parts[0]!.shape[2]);
      return hasOwnDual(dialect, { form: node.form, features })
        ? Math.min(left, longest)
        : pieceOfBlocks(left, longest);
    }
    case 'selectiveScan': {
      const [channels, n] = states[node.state]!.store.spec.parts[0]!.shape as [number, number];
      return Math.min(left, scanPiece(channels, n));
    }
    default:
      return Math.min(left, longest);
  }
}

const longest = 8192;
