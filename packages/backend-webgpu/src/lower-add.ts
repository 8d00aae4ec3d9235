import { type LayerGraph, type NodeOf, operandsOf, type Value } from '@dsla/spec';
import { type Builder, type Operand, perItem, result, typeOf, vector } from './builder.js';
import type { Fusions } from './fuse.js';
import { rmsNorm } from './kernels/norm.js';
import { emitFew, emitLinear, emitMany, emitSum, onlyFew, onlyMany } from './lower-linear.js';

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
  if (next === undefined) {
    const sum = inPlace(graph, index, own?.to ?? node.a, builder) ? a : result(builder, a.width, a.domain, type);
    if (product) {
      const { weight, bias } = product;
      emitLinear(builder, operand(product.x), [{ weight, bias, y: sum, add: a }]);
    } else emitSum(builder, a, operand(node.b), sum);
    return sum;
  }
  const norm = graph.nodes[next] as NodeOf<'rmsNorm'>;
  const [sum, y] = [result(builder, a.width, a.domain, type), result(builder, a.width, a.domain)];
  const both = (b: Operand) => ({
    kernel: rmsNorm(a.domain, y, a, norm.eps, { b, sum }),
    buffers: [a.ref, b.ref, vector(norm.weight), sum.ref, y.ref],
  });
  if (!product) {
    const { kernel, buffers } = both(operand(node.b));
    emit(kernel, buffers, perItem(a.domain));
    operands[next] = y;
    return sum;
  }
  const { weight, bias } = product;
  const x = operand(product.x);
  emitFew(builder, x, [{ weight, bias, y: sum, add: a }]);
  const plain = result(builder, a.width, a.domain);
  emitMany(builder, x, [{ weight, bias, y: plain }]);
  const { kernel, buffers } = both(plain);
  emit(kernel, buffers, onlyMany(builder, a.domain, perItem(a.domain)));
  operands[next] = taken.has(next) ? { ...y, normed: { x: sum, weight: norm.weight, eps: norm.eps } } : y;
  if (!taken.has(next)) {
    const alone = rmsNorm(a.domain, y, sum, norm.eps);
    emit(alone, [sum.ref, vector(norm.weight), y.ref], onlyFew(builder, a.domain, perItem(a.domain)));
  }
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
