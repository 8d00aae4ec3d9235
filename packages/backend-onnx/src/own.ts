import { type Node, type NodeOf, operandsOf, type Value, type Weight } from '@dsla/spec';
import { type LinearForm, linearOperator, widestLinear } from './cuda/linear.js';
import type { Dialect } from './dialect.js';
import type { Ref } from './emit.js';
import type { Lowering } from './lowering.js';
import { fused } from './nodes/softmax-attention.js';
import { hasBlocks } from './quantise.js';
import { isOwn, type Tape } from './tape.js';

// Where a step has one token, linear maps and softmax attention are operators of our own: they read matrices faster, norms before
// them and sums after them cost no kernels, and neither do the rotation of heads and the copy into the cache.

/** A linear map of one token, with the nodes beside it that it computes too. */
export interface OwnLinear extends NodeOf<'linear'> {
  readonly own: true;
  /** Of x. */
  readonly norm?: { readonly weight: Weight; readonly eps: number };
  /** silu(gate x) times the map of x. */
  readonly gate?: Weight;
  readonly residual?: Value;
}

export function isOwnLinear(node: Node): node is OwnLinear {
  return node.op === 'linear' && isOwn(node);
}

/** Adds it to a model; the result is its value, [1, 1, n]. */
export function ownLinear(node: OwnLinear, lowering: Lowering, value: (index: number) => Ref): Ref {
  const { graph, weight, matrix, shapeOf } = lowering;
  const { norm, gate, residual, bias } = node;
  const shape = shapeOf(node.weight);
  const { weights } = lowering.dialect;
  const form: LinearForm = {
    k: shape[1]!,
    format: weights && hasBlocks(shape) ? weights : 'float16',
    epsilon: norm?.eps,
    gated: gate !== undefined,
    residual: residual !== undefined,
  };
  const inputs = [value(node.x), ...matrix(node.weight)];
  if (gate !== undefined) inputs.push(...matrix(gate));
  if (norm) inputs.push(weight(norm.weight));
  if (residual !== undefined) inputs.push(value(residual));
  const y = graph.own(linearOperator(form), inputs)[0]!;
  return bias === undefined ? y : graph.op('Add', [y, weight(bias)]);
}

/** The tape for one token of one row, where values keep their indices; the same where operators of our own can do nothing for it. */
export function ownNodes(tape: Tape, dialect: Dialect): Tape {
  const { graph, shapeOf } = tape;
  if (!dialect.operators || dialect.compute !== 'float16') return tape;
  const nodes = graph.nodes.map((node): Node => (fits(node, shapeOf, dialect) ? ownOf(node) : node));
  if (!nodes.some(isOwn)) return tape;
  for (const index of nodes.keys()) takeNorm(nodes, index);
  for (const index of nodes.keys()) takeGate(nodes, index, shapeOf);
  for (const index of nodes.keys()) takeResidual(nodes, index);
  return { ...tape, graph: { ...graph, nodes } };
}

function ownOf(node: Node): Node & { readonly own: true } {
  return { ...node, own: true };
}

function fits(node: Node, shapeOf: Tape['shapeOf'], dialect: Dialect): boolean {
  if (node.op === 'softmaxAttention') return !node.window && fused(node, dialect);
  if (node.op !== 'linear') return false;
  const [, k] = shapeOf(node.weight) as [number, number];
  return k % 8 === 0 && k <= widestLinear;
}

/** In the place of a node that is part of another. */
const nothing: Node = { op: 'input', name: '', width: 0 };

function usersOf(nodes: readonly Node[], value: Value): Value[] {
  return nodes.flatMap((node, index) => (readsOf(node).includes(value) ? [index] : []));
}

function readsOf(node: Node): readonly Value[] {
  const residual = isOwnLinear(node) ? node.residual : undefined;
  return residual === undefined ? operandsOf(node) : [...operandsOf(node), residual];
}

/** A norm that linear maps alone read is computed by each of them. */
function takeNorm(nodes: Node[], at: Value): void {
  const norm = nodes[at]!;
  if (norm.op !== 'rmsNorm') return;
  const users = usersOf(nodes, at).map((user) => [user, nodes[user]!] as const);
  if (users.length === 0 || !users.every(([, user]) => isOwnLinear(user))) return;
  const { x, weight, eps } = norm;
  for (const [index, user] of users) nodes[index] = { ...user, x, norm: { weight, eps } } as OwnLinear;
  nodes[at] = nothing;
}

/** silu(G x) * W x */
function takeGate(nodes: Node[], at: Value, shapeOf: Tape['shapeOf']): void {
  const product = nodes[at]!;
  if (product.op !== 'mul') return;
  for (const [activated, other] of [
    [product.a, product.b],
    [product.b, product.a],
  ] as const) {
    const [silu, map] = [nodes[activated]!, nodes[other]!];
    if (silu.op !== 'activate' || silu.fn !== 'silu') continue;
    const gate = nodes[silu.x]!;
    const parts = [activated, other, silu.x];
    if (!plain(gate) || !plain(map) || !parts.every((part) => usersOf(nodes, part).length === 1)) continue;
    const same = gate.x === map.x && gate.norm?.weight === map.norm?.weight && gate.norm?.eps === map.norm?.eps;
    if (!same || shapeOf(gate.weight).join() !== shapeOf(map.weight).join()) continue;
    nodes[at] = { ...map, gate: gate.weight } as OwnLinear;
    for (const part of parts) nodes[part] = nothing;
    return;
  }
}

function plain(node: Node): node is OwnLinear {
  return isOwnLinear(node) && node.bias === undefined && node.gate === undefined && node.residual === undefined;
}

function takeResidual(nodes: Node[], at: Value): void {
  const sum = nodes[at]!;
  if (sum.op !== 'add') return;
  for (const [residual, value] of [
    [sum.a, sum.b],
    [sum.b, sum.a],
  ] as const) {
    const map = nodes[value]!;
    if (residual === value || !isOwnLinear(map) || map.bias !== undefined || map.residual !== undefined) continue;
    if (usersOf(nodes, value).length !== 1) continue;
    nodes[at] = { ...map, residual } as OwnLinear;
    nodes[value] = nothing;
    return;
  }
}
