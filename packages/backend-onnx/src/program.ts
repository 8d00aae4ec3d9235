import { inferWidths, inlineCalls, type LayerGraph, type Node, type Weight } from '@dsla/spec';
import { type Dims, GraphBuilder, type Ref } from './emit.js';
import { invalid } from './errors.js';
import type { Derivation, Lowering, Port, Source } from './lowering.js';
import { isStateful, lowerStateful, type Stateful } from './nodes/stateful.js';
import { isTokenWise, lowerTokenWise, type TokenWise } from './nodes/token-wise.js';

/** One ONNX model and what its inputs and outputs stand for. */
export interface Model {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
}

/** Models that do the same: for exactly one token of a row, and for any number. */
export interface RowModels {
  readonly decode: Model;
  readonly prefill: Model;
}

/** A stretch of token-wise nodes, run for all rows at once, or one node with a state, run row by row. */
export type Stage =
  | { readonly kind: 'shared'; readonly model: Model }
  | { readonly kind: 'row'; readonly node: Stateful; readonly models: RowModels };

/** A compiled tape. */
export interface Program {
  readonly graph: LayerGraph;
  readonly widths: readonly number[];
  shapeOf(weight: Weight): readonly number[];
  readonly stages: readonly Stage[];
  /** The whole tape for a batch of one row; absent where a single stage is the whole tape. */
  readonly whole?: RowModels;
}

export function compileProgram(layer: LayerGraph, shapeOf: (weight: Weight) => readonly number[]): Program {
  const graph = inlineCalls(layer);
  const tape: Tape = { graph, widths: inferWidths(graph, shapeOf), shapeOf };
  const stages = cut(graph).map((nodes): Stage => stageOf(tape, nodes));
  const whole = stages.length > 1 && !graph.nodes.some(({ op }) => op === 'foldState');
  const all = graph.nodes.map((_, index) => index);
  return { ...tape, stages, ...(whole ? { whole: rowModels(tape, graph.name, all) } : {}) };
}

/** Every model of a program. */
export function modelsOf({ stages, whole }: Program): readonly Model[] {
  const ofRow = ({ decode, prefill }: RowModels): Model[] => [decode, prefill];
  const ofStages = stages.flatMap((stage) => (stage.kind === 'shared' ? [stage.model] : ofRow(stage.models)));
  return whole ? [...ofStages, ...ofRow(whole)] : ofStages;
}

/** Sentences about the nodes that cannot be lowered. */
export function unsupportedNodes(graph: LayerGraph): readonly string[] {
  return inlineCalls(graph).nodes.flatMap((node, index) =>
    node.op === 'input' || node.op === 'output' || isStateful(node) || isTokenWise(node)
      ? []
      : [`${graph.name} node ${index}: onnx cannot run ${node.op}`],
  );
}

interface Tape {
  readonly graph: LayerGraph;
  readonly widths: readonly number[];
  shapeOf(weight: Weight): readonly number[];
}

/** Indices of the nodes that compute, in stretches: every node with a state stands alone. */
function cut({ nodes }: LayerGraph): number[][] {
  const stretches: number[][] = [];
  let open: number[] | undefined;
  nodes.forEach((node, index) => {
    if (node.op === 'input' || node.op === 'output') return;
    if (isStateful(node)) {
      stretches.push([index]);
      open = undefined;
    } else if (open) open.push(index);
    else {
      open = [index];
      stretches.push(open);
    }
  });
  return stretches;
}

function stageOf(tape: Tape, indices: readonly number[]): Stage {
  const node = tape.graph.nodes[indices[0]!]!;
  const name = `${tape.graph.name} nodes ${indices[0]}-${indices.at(-1)}`;
  return isStateful(node)
    ? { kind: 'row', node, models: rowModels(tape, `${tape.graph.name} node ${indices[0]} (${node.op})`, indices) }
    : { kind: 'shared', model: emit(tape, name, indices, false) };
}

function rowModels(tape: Tape, name: string, indices: readonly number[]): RowModels {
  return { decode: emit(tape, name, indices, true), prefill: emit(tape, name, indices, false) };
}

/** The nodes `indices` as one model; values of other nodes come in, values that other nodes want go out. */
function emit({ graph, widths, shapeOf }: Tape, name: string, indices: readonly number[], decode: boolean): Model {
  const builder = new GraphBuilder();
  const inputs = new Map<string, Port>();
  const outputs: Port[] = [];
  const bring = (port: Port): Ref => {
    if (!inputs.has(port.name)) inputs.set(port.name, port);
    return port.name;
  };
  const lowering: Lowering = {
    graph: builder,
    decode,
    shapeOf,
    spec: (state) => graph.states.find((spec) => spec.name === state)!,
    weight: (weight, derivation) => bring(weightPort(weight, shapeOf(weight), derivation)),
    control: (control) =>
      bring({
        name: `control ${control.key}`,
        source: { kind: 'control', control },
        type: control.type,
        dims: control.dims,
      }),
    table: (table) =>
      bring({
        name: `table ${table.key}`,
        source: { kind: 'table', table },
        type: 'float',
        dims: ['positions', table.width],
      }),
    past: (state, part, dims) => {
      checkPart(graph, state, part, dims);
      return bring({ name: `state ${state} ${part}`, source: { kind: 'state', state, part }, type: 'float', dims });
    },
    present(state, part, value, dims) {
      checkPart(graph, state, part, dims);
      const port: Port = { name: `next ${state} ${part}`, source: { kind: 'state', state, part }, type: 'float', dims };
      builder.output(port.name, value, dims);
      outputs.push(port);
    },
  };
  const inside = new Set(indices);
  const made = new Map<number, Ref>();
  const value = (index: number): Ref => made.get(index) ?? bring(valuePort(index, widths[index]!));
  const wanted = (index: number): boolean =>
    graph.nodes.some((node, user) => !inside.has(user) && readsOf(node).includes(index)) ||
    graph.nodes.some((node) => node.op === 'output' && node.x === index);
  for (const index of indices) {
    const node = graph.nodes[index]!;
    if (node.op === 'input' || node.op === 'output') continue;
    const ref = isStateful(node)
      ? lowerStateful(node, lowering, value)
      : lowerTokenWise(node as TokenWise, lowering, {
          ids: () => bring({ name: 'ids', source: { kind: 'ids' }, type: 'int32', dims: ['tokens'] }),
          last: () => bring({ name: 'last', source: { kind: 'last' }, type: 'int64', dims: ['rows'] }),
          value,
        });
    if (ref === undefined) continue;
    made.set(index, ref);
    if (!wanted(index)) continue;
    const port = { ...valuePort(index, widths[index]!), name: `out ${index}` };
    builder.output(port.name, ref, port.dims);
    outputs.push(port);
  }
  for (const { name: input, type, dims } of inputs.values()) builder.input(input, type, dims);
  return { name, bytes: builder.finish(name), inputs: [...inputs.values()], outputs };
}

/** A state must be laid out as its node reads it. */
function checkPart(graph: LayerGraph, state: string, part: number, dims: Dims): void {
  const got = graph.states.find((spec) => spec.name === state)?.parts[part]?.shape;
  const layout = (shape: Dims): string => {
    const sizes = shape.filter((size) => typeof size === 'number');
    return [sizes.reduce((a, b) => a * b, 1), ...shape.filter((size) => typeof size === 'string')].join();
  };
  if (got && layout(got) === layout(dims)) return;
  throw invalid(
    `${graph.name} state ${state}`,
    `part ${part} must be laid out as [${dims.join(', ')}]`,
    got ?? 'no such part',
  );
}

function valuePort(value: number, width: number): Port {
  return { name: `value ${value}`, source: { kind: 'value', value }, type: 'float', dims: [`rows ${value}`, width] };
}

function weightPort(weight: Weight, shape: readonly number[], derivation: Derivation | undefined): Port {
  const source: Source = derivation ? { kind: 'weight', weight, derivation } : { kind: 'weight', weight };
  const name = derivation ? `weight ${weight} ${derivation.name}` : `weight ${weight}`;
  return { name, source, type: 'float', dims: derivation ? derivation.shape(shape) : shape };
}

/** The values that a node reads. */
export function readsOf(node: Node): readonly number[] {
  switch (node.op) {
    case 'input':
    case 'embed':
    case 'foldState':
      return [];
    case 'add':
    case 'mul':
    case 'concat':
      return [node.a, node.b];
    case 'softmaxAttention':
      return [node.q, node.k, node.v];
    case 'dualLinearAttention':
      return [node.q, node.k, node.v, node.gates];
    case 'selectiveScan':
      return [node.x, node.dt, node.b, node.c];
    case 'call':
      return node.inputs;
    default:
      return [node.x];
  }
}
