import { type LayerGraph, type NodeOf, operandsOf, type Value } from '@dsla/spec';
import { type Builder, type Operand, perItem, result, typeOf, vector } from './builder.js';
import type { Fusions } from './fuse.js';
import { rmsNorm } from './kernels/norm.js';
import { emitLinear, emitSum, onlyMany } from './lower-linear.js';

/** An addition, with the product before and the norm after it where one kernel can do them. */
export function lowerAdd(
  builder: Builder,
  graph: LayerGraph,
  index: Value,
  { added, normed, taken }: Fusions,
  operands: (Operand | undefined)[],
): Operand {
  const { operand, emit } = builder;
  const node = graph.nodes[index] as NodeOf<'add' | 'mul'>;
  const next = normed.get(index);
  const own = added.get(index);
  const a = operand(own?.to ?? node.a);
  const type = typeOf(builder, node);
  const product = own && (graph.nodes[own.product] as NodeOf<'linear'>);
  const place = (product || next === undefined) && inPlace(graph, index, own?.to ?? node.a, builder);
  const sum = place ? a : result(builder, a.width, a.domain, type);
  if (product) {
    const { weight, bias } = product;
    emitLinear(builder, operand(product.x), [{ weight, bias, y: sum, add: a }]);
  }
  if (next === undefined) {
    if (!product) emitSum(builder, a, operand(node.b), sum);
    return sum;
  }
  const { weight, eps } = graph.nodes[next] as NodeOf<'rmsNorm'>;
  const y = result(builder, a.width, a.domain);
  const all = perItem(a.domain);
  if (product) {
    const grid = taken.has(next) ? onlyMany(builder, a.domain, all) : all;
    emit(rmsNorm(a.domain, y, sum, eps), [sum.ref, vector(weight), y.ref], grid);
  } else {
    const b = operand(node.b);
    emit(rmsNorm(a.domain, y, a, eps, { added: { b, sum } }), [a.ref, b.ref, vector(weight), sum.ref, y.ref], all);
  }
  operands[next] = product && taken.has(next) ? { ...y, normed: { x: sum, weight, eps } } : y;
  return sum;
}

/**
 * Whether x of x + y is a named value that the sum replaces, and no later node reads the old one: WebGPU refuses one buffer as
 * input and output of a dispatch, but a kernel may add to it.
 */
function inPlace(graph: LayerGraph, index: Value, to: Value, builder: Builder): boolean {
  const node = graph.nodes[index] as NodeOf<'add' | 'mul'>;
  const x = builder.operand(to);
  if (node.a === node.b || x.ref.kind !== 'value' || x.type !== typeOf(builder, node)) return false;
  const { name } = x.ref.value;
  const written = graph.nodes.some((other) => other.op === 'output' && other.name === name && other.x === index);
  const sameInput = (value: Value) => {
    const of = graph.nodes[value];
    return of?.op === 'input' && of.name === name;
  };
  const readLater = graph.nodes.some((other, at) => at > index && operandsOf(other).some(sameInput));
  return written && !readLater && sameInput(to) && !sameInput(to === node.a ? node.b : node.a);
}
