import { inferWidths, type LayerGraph, type Node, type NodeOf, type Value, type WeightShape } from '@dsla/spec';
import {
  type Builder,
  matrix,
  type Operand,
  partOf,
  perElement,
  perItem,
  result,
  sourceOf,
  type Traits,
  typeOf,
  vector,
} from './builder.js';
import { type Fusions, findFusions } from './fuse.js';
import * as elementwise from './kernels/elementwise.js';
import { embed } from './kernels/embed.js';
import { rmsNorm } from './kernels/norm.js';
import { lowerAdd } from './lower-add.js';
import { lowerDual, lowerFold } from './lower-dual.js';
import { emitGated, emitLinear, emitParallel, hasVectors, onlyMany, type Product, readsParts } from './lower-linear.js';
import { lowerAttention, lowerConv, lowerScan } from './lower-state.js';
import { preciseNodes } from './precision.js';
import { elideCopies, type NamedValue, namedValue, type Op, type Program, place, refsOf } from './program.js';

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
    precise: preciseNodes(graph),
    operand: (value) => operands[value]!,
    temp: (width, of = type, domain = 'token') => ({ kind: 'temp', temp: { width, type: of, domain } }),
    emit: (kernel, buffers, grid, replay = false) => void ops.push({ kernel, buffers, grid, replay }),
  };
  const fusions = findFusions(
    graph,
    (weight) => {
      const [outputs, width] = shapeOf(weight) as [number, number];
      return hasVectors(builder, { width, type }, outputs);
    },
    widths,
  );
  let vocabulary = Number.POSITIVE_INFINITY;
  graph.nodes.forEach((node, index) => {
    if (node.op === 'embed') vocabulary = Math.min(vocabulary, shapeOf(node.table)[0]!);
    if (fusions.absorbed.has(index) || operands[index]) return;
    operands[index] = lowerFused(builder, graph, index, fusions, operands) ?? lowerNode(builder, node, widths[index]!);
  });
  const kept = elideCopies(ops);
  const inputs: NamedValue[] = [];
  const outputs: NamedValue[] = [];
  graph.nodes.forEach((node) => {
    if (node.op === 'input') inputs.push(namedInput(builder, node));
    if (node.op === 'output') outputs.push(namedOutput(node.name, operands[node.x]!));
  });
  const replays = kept.some(({ replay }) => replay);
  const placed = place(kept);
  const refs = refsOf(kept, placed.slotOf);
  return { ops: kept, ...placed, refs, inputs, outputs, replays, vocabulary };
}

/** Several nodes by one kernel, if the node at `index` begins or ends such a group. */
function lowerFused(
  builder: Builder,
  graph: LayerGraph,
  index: Value,
  fusions: Fusions,
  operands: (Operand | undefined)[],
): Operand | undefined {
  const { operand, emit } = builder;
  const { nodes } = graph;
  const { gated, grouped, parallel, activated, joints, scanned, sliced, taken, lasts } = fusions;
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
    const grid = perElement(y, elementwise.elementsAThread(y, a, b));
    emit(elementwise.activateMul(gate.fn, a.domain, y, a, b), [a.ref, b.ref, y.ref], grid);
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
  const unlike = parallel.get(index)?.map((value) => ({ value, linear: nodes[value] as NodeOf<'linear'> }));
  if (unlike) {
    const products = unlike.map(({ value, linear }) => {
      operands[linear.x] ??= lowerPart(builder, nodes, linear.x);
      const x = operand(linear.x);
      const product = { x, ...productOf(builder, linear, x) };
      operands[value] = product.y;
      return product;
    });
    emitParallel(builder, products);
    return products[0]!.y;
  }
  const node = nodes[index]!;
  const active = activated.get(index);
  if (active || joints.has(index)) {
    const y =
      node.op === 'causalConv'
        ? lowerConv(builder, node, active?.fn)
        : lowerConcat(builder, node as NodeOf<'concat'>, active?.fn, joints.has(index));
    if (active) operands[active.by] = y;
    return y;
  }
  const scan = scanned.get(index);
  if (scan) {
    const y = lowerScan(builder, node as NodeOf<'selectiveScan'>, { fn: scan.fn, z: operand(scan.gate) });
    operands[scan.by] = y;
    return y;
  }
  if (sliced.has(index)) return lowerPart(builder, nodes, index);
  if (lasts.has(index)) return lowerLast(builder, node as NodeOf<'lastToken'>, true);
  if (node.op === 'add') return lowerAdd(builder, graph, index, fusions, operands);
  if (node.op !== 'rmsNorm' || !taken.has(index)) return undefined;
  const [x, { weight, eps }] = [operand(node.x), node];
  const y = result(builder, x.width, x.domain);
  emit(rmsNorm(x.domain, y, x, eps), [x.ref, vector(weight), y.ref], onlyMany(builder, x.domain, perItem(x.domain)));
  return { ...y, normed: { x, weight, eps } };
}

function lowerNode(builder: Builder, node: Node, width: number): Operand | undefined {
  const { operand, emit } = builder;
  switch (node.op) {
    case 'input': {
      const value = namedInput(builder, node);
      return { ref: { kind: 'value', value }, ...value };
    }
    case 'embed': {
      const y = result(builder, width, 'token', typeOf(builder, node));
      emit(embed(y, builder.type), [matrix(builder, node.table), y.ref], perElement(y));
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
    case 'mul': {
      const [a, b] = [operand(node.a), operand(node.b)];
      const y = result(builder, width, a.domain);
      // WebGPU refuses no buffer that is only read twice.
      const grid = perElement(y, elementwise.elementsAThread(y, a, b));
      emit(elementwise.multiply(a.domain, y, a, b), [a.ref, b.ref, y.ref], grid);
      return y;
    }
    case 'concat':
      return lowerConcat(builder, node);
    case 'slice': {
      const x = operand(node.x);
      const y = result(builder, width, x.domain);
      emit(elementwise.slice(x.domain, y, x, node.from), [x.ref, y.ref], perElement(y));
      return y;
    }
    case 'activate': {
      const x = operand(node.x);
      const y = result(builder, width, x.domain);
      const grid = perElement(y, elementwise.elementsAThread(y, x));
      emit(elementwise.activate(node.fn, x.domain, y, x), [x.ref, y.ref], grid);
      return y;
    }
    case 'lastToken':
      return lowerLast(builder, node);
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
      const grid = perElement(x, elementwise.elementsAThread(value, x));
      emit(elementwise.copy(x.domain, value, x), [x.ref, { kind: 'value', value }], grid);
      return undefined;
    }
    case 'add':
    case 'call':
      throw new Error(`${node.op} is dealt with before`);
    default:
      return node satisfies never;
  }
}

/** a, then b, which may be parts of other values; a joint is not written. */
function lowerConcat(builder: Builder, node: NodeOf<'concat'>, fn?: NodeOf<'activate'>['fn'], joint = false): Operand {
  const [first, second] = [builder.operand(node.a), builder.operand(node.b)];
  const y = result(builder, first.width + second.width, first.domain, typeOf(builder, node));
  if (joint) return { ...y, joint: { parts: [first, second], fn } };
  const kernel = elementwise.concat(first.domain, y, partOf(first), partOf(second), fn);
  builder.emit(kernel, [sourceOf(first), sourceOf(second), y.ref], perElement(y));
  return y;
}

/** A slice of a value in the compute type: written only where products of many items read it that cannot read a part. */
function lowerPart(builder: Builder, nodes: readonly Node[], index: Value): Operand {
  const { x, from, to } = nodes[index] as NodeOf<'slice'>;
  const of = builder.operand(x);
  const y = result(builder, to - from, of.domain);
  const parted = of.type === builder.type;
  const multiplied = nodes.some(
    (node) => node.op === 'linear' && node.x === index && !readsParts(builder, y, builder.shapeOf(node.weight)[0]!),
  );
  if (multiplied || !parted) {
    const all = perElement(y);
    const grid = parted ? onlyMany(builder, y.domain, all) : all;
    builder.emit(elementwise.slice(y.domain, y, of, from), [of.ref, y.ref], grid);
  }
  return parted ? { ...y, part: { of, from } } : y;
}

/** With `fused`, written for more than a few rows only. */
function lowerLast(builder: Builder, node: NodeOf<'lastToken'>, fused = false): Operand {
  const x = builder.operand(node.x);
  const y = result(builder, x.width, 'row', typeOf(builder, node));
  const all = perElement(y);
  builder.emit(elementwise.lastToken(y, x), [x.ref, y.ref], fused ? onlyMany(builder, 'row', all) : all);
  return fused ? { ...y, last: x } : y;
}

function namedInput(builder: Builder, node: NodeOf<'input'>): NamedValue {
  return namedValue(node.name, node.width, typeOf(builder, node), 'token');
}

function namedOutput(name: string, { width, domain, type }: Operand): NamedValue {
  return namedValue(name, width, type, domain);
}

function productOf(builder: Builder, node: NodeOf<'linear'>, { domain }: Operand): Product {
  const { weight, bias } = node;
  const y = result(builder, builder.shapeOf(weight)[0]!, domain, typeOf(builder, node));
  return { weight, bias, y, exact: builder.precise.get(node) === 'logits' };
}
