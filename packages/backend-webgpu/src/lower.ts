import { inferWidths, type LayerGraph, type Node, type NodeOf, type Value, type WeightShape } from '@dsla/spec';
import { type Builder, countOf, matrix, type Operand, perElement, result, type Traits, vector } from './builder.js';
import { type Fusions, findFusions, reads } from './fuse.js';
import * as elementwise from './kernels/elementwise.js';
import { embed } from './kernels/embed.js';
import type { Domain, Element, Grid } from './kernels/kernel.js';
import { rmsNorm } from './kernels/norm.js';
import { lowerDual, lowerFold } from './lower-dual.js';
import { emitGated, emitLinear, type Product } from './lower-linear.js';
import { lowerAttention, lowerConv, lowerScan } from './lower-state.js';
import { elideCopies, type NamedValue, type Op, type Program, place } from './program.js';
import type { View } from './view.js';

/** Tape to dispatches. Small weights are float32, matrices have the compute type. */
export function lower(graph: LayerGraph, shapeOf: WeightShape, traits: Traits): Program {
  const { type } = traits;
  const widths = inferWidths(graph, shapeOf);
  const operands: (Operand | undefined)[] = [];
  const ops: Op[] = [];
  const builder: Builder = {
    type,
    traits,
    shapeOf,
    operand: (value) => operands[value]!,
    temp: (width, of = type, domain = 'token') => ({ kind: 'temp', temp: { width, type: of, domain } }),
    emit: (kernel, buffers, grid, replay = false) => void ops.push({ kernel, buffers, grid, replay }),
  };
  const fusions = findFusions(graph);
  let vocabulary = Number.POSITIVE_INFINITY;
  graph.nodes.forEach((node, index) => {
    if (node.op === 'embed') vocabulary = Math.min(vocabulary, shapeOf(node.table)[0]!);
    if (fusions.absorbed.has(index)) return;
    operands[index] =
      residual(graph, index, builder) ??
      lowerFused(builder, graph, index, fusions, operands) ??
      lowerNode(builder, node, widths[index]!);
  });
  const kept = elideCopies(ops);
  const inputs: NamedValue[] = [];
  const outputs: NamedValue[] = [];
  graph.nodes.forEach((node) => {
    if (node.op === 'input') inputs.push(namedInput(node, type));
    if (node.op === 'output') outputs.push(namedOutput(node.name, operands[node.x]!));
  });
  const values = new Set(
    kept.flatMap(({ buffers }) => buffers.flatMap((ref) => (ref.kind === 'value' ? ref.value : []))),
  );
  const replays = kept.some(({ replay }) => replay);
  return { ops: kept, ...place(kept), inputs, outputs, values: [...values], replays, vocabulary };
}

/** Several nodes by one kernel, if the node at `index` begins or ends such a group. */
function lowerFused(
  builder: Builder,
  { nodes }: LayerGraph,
  index: Value,
  { gated, grouped, normed }: Fusions,
  operands: (Operand | undefined)[],
): Operand | undefined {
  const { operand, emit } = builder;
  const gate = gated.get(index);
  if (gate?.product) {
    const x = operand(gate.product.x);
    const y = result(builder, builder.shapeOf(gate.product.gate)[0]!, x.domain);
    emitGated(builder, x, y, gate.fn, gate.product.gate, gate.product.up);
    return y;
  }
  if (gate) {
    const [a, b] = [operand(gate.gate), operand(gate.up)];
    const y = result(builder, a.width, a.domain);
    emit(elementwise.activateMul(gate.fn, a.domain, y, a, b), [a.ref, b.ref, y.ref], perElement(y));
    return y;
  }
  const group = grouped.get(index);
  if (group) {
    const linears = group.map((value) => nodes[value] as NodeOf<'linear'>);
    const x = operand(linears[0]!.x);
    const products = linears.map((one) => productOf(builder, one, x));
    group.forEach((value, at) => {
      operands[value] = products[at]!.y;
    });
    emitLinear(builder, x, products);
    return products[0]!.y;
  }
  const next = normed.get(index);
  const [node, norm] = [nodes[index]!, next === undefined ? undefined : nodes[next]!];
  if (next === undefined || node.op !== 'add' || norm?.op !== 'rmsNorm') return undefined;
  const [a, b] = [operand(node.a), operand(node.b)];
  const sum = result(builder, a.width, a.domain);
  const y = result(builder, a.width, a.domain);
  const buffers = [a.ref, b.ref, vector(norm.weight), sum.ref, y.ref];
  emit(rmsNorm(a.domain, y, a, norm.eps, { b, sum }), buffers, perItem(a.domain));
  operands[next] = y;
  return sum;
}

function lowerNode(builder: Builder, node: Node, width: number): Operand | undefined {
  const { operand, emit, type } = builder;
  switch (node.op) {
    case 'input': {
      const value = namedInput(node, type);
      return { ref: { kind: 'value', value }, ...value };
    }
    case 'embed': {
      const y = result(builder, width, 'token');
      emit(embed(y, type), [matrix(builder, node.table), y.ref], perElement(y));
      return y;
    }
    case 'linear': {
      const x = operand(node.x);
      const product = productOf(builder, node, x);
      emitLinear(builder, x, [product]);
      return product.y;
    }
    case 'rmsNorm': {
      const x = operand(node.x);
      const y = result(builder, width, x.domain);
      emit(rmsNorm(x.domain, y, x, node.eps), [x.ref, vector(node.weight), y.ref], perItem(x.domain));
      return y;
    }
    case 'add':
    case 'mul':
    case 'concat': {
      const [a, b] = [operand(node.a), operand(node.b)];
      const y = result(builder, width, a.domain);
      const kernel =
        node.op === 'concat' ? elementwise.concat(a.domain, y, a, b) : elementwise.binary(node.op, a.domain, y, a, b);
      // WebGPU refuses no buffer that is only read twice.
      emit(kernel, [a.ref, b.ref, y.ref], perElement(y));
      return y;
    }
    case 'slice': {
      const x = operand(node.x);
      const y = result(builder, width, x.domain);
      emit(elementwise.slice(x.domain, y, x, node.from), [x.ref, y.ref], perElement(y));
      return y;
    }
    case 'activate': {
      const x = operand(node.x);
      const y = result(builder, width, x.domain);
      emit(elementwise.activate(node.fn, x.domain, y, x), [x.ref, y.ref], perElement(y));
      return y;
    }
    case 'lastToken': {
      const x = operand(node.x);
      const y = result(builder, width, 'row');
      emit(elementwise.lastToken(y, x), [x.ref, y.ref], perElement(y));
      return y;
    }
    case 'softmaxAttention':
      return lowerAttention(builder, node);
    case 'dualLinearAttention':
      return lowerDual(builder, node);
    case 'causalConv':
      return lowerConv(builder, node);
    case 'selectiveScan':
      return lowerScan(builder, node);
    case 'foldState':
      lowerFold(builder, node);
      return undefined;
    case 'output': {
      const x = operand(node.x);
      const value = namedOutput(node.name, x);
      if (x.ref.kind === 'value' && x.ref.value.name === node.name) return undefined;
      emit(elementwise.copy(x.domain, value, x), [x.ref, { kind: 'value', value }], perElement(x));
      return undefined;
    }
    case 'call':
      throw new Error('calls are inlined before a tape is lowered');
    default:
      return node satisfies never;
  }
}

/**
 * x + y written back to the same name as x: adds in place, where no later node reads the old x. WebGPU refuses one buffer
 * as input and output of a dispatch.
 */
function residual(graph: LayerGraph, index: number, { operand, emit }: Builder): Operand | undefined {
  const node = graph.nodes[index]!;
  if (node.op !== 'add' || node.a === node.b) return undefined;
  const x = operand(node.a);
  if (x.ref.kind !== 'value') return undefined;
  const { name } = x.ref.value;
  const written = graph.nodes.some((other) => other.op === 'output' && other.name === name && other.x === index);
  const sameInput = (value: Value) => {
    const of = graph.nodes[value];
    return of?.op === 'input' && of.name === name;
  };
  const readLater = graph.nodes.some((other, at) => at > index && reads(other).some(sameInput));
  if (!written || readLater || !sameInput(node.a) || sameInput(node.b)) return undefined;
  const added = operand(node.b);
  emit(elementwise.accumulate(x.domain, x, added), [added.ref, x.ref], perElement(x));
  return x;
}

function namedInput({ name, width }: NodeOf<'input'>, type: Element): NamedValue {
  return { name, width, type, domain: 'token' };
}

function namedOutput(name: string, { width, domain, type }: Operand): NamedValue {
  return { name, width, type, domain };
}

function productOf(builder: Builder, { weight, bias }: NodeOf<'linear'>, { domain }: Operand): Product {
  // One entry a row: logits, worth more digits than they take.
  const type = domain === 'row' ? 'f32' : builder.type;
  return { weight, bias, y: result(builder, builder.shapeOf(weight)[0]!, domain, type) };
}

function perItem(domain: Domain): (view: View) => Grid {
  return (view) => [countOf(view, domain), 1, 1];
}
