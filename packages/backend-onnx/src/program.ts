import { inlineCalls, type LayerGraph, type Node, type Weight } from '@dsla/spec';
import type { Dialect } from './dialect.js';
import { type Joint, joinProjections } from './joint.js';
import { type Model, type ModelOptions, modelOf } from './model.js';
import { isStateful, type Stateful } from './nodes/stateful.js';
import { isTokenWise } from './nodes/token-wise.js';
import { ownNodes } from './own.js';
import { type Tape, tapeOf } from './tape.js';

/** A stretch of token-wise nodes, run for all rows at once, or one node with a state. */
type Stage =
  | { readonly kind: 'shared'; readonly model: Model }
  /** One model for exactly one token of each of some rows, one for any number of one row. */
  | { readonly kind: 'row'; readonly node: Stateful; readonly decode: Model; readonly prefill: Model };

/** A compiled tape. */
export interface Program extends Tape, Contents {
  readonly stages: readonly Stage[];
  readonly dialect: Dialect;
  /** The whole tape for one token of each of its rows: one run instead of one a stage. */
  readonly whole?: Model;
  /** The same for one row alone, with operators of our own. */
  readonly single?: Model;
}

/** The nodes that a step looks at whenever it runs a layer. */
interface Contents {
  readonly inputs: readonly { readonly index: number; readonly name: string; readonly width: number }[];
  readonly outputs: readonly { readonly name: string; readonly value: number }[];
  readonly embeddings: readonly { readonly index: number; readonly vocabulary: number }[];
  readonly folds: readonly { readonly index: number; readonly from: string }[];
}

/** `joins`: see joinProjections. @throws DslaError E_INPUT */
export function compileProgram(
  layer: LayerGraph,
  shapeOf: (weight: Weight) => readonly number[],
  options: Omit<ModelOptions, 'decode'>,
  joins: (joint: Joint) => boolean,
): Program {
  const tape = tapeOf(layer, shapeOf);
  const { graph } = tape;
  const stages = cut(graph).map((nodes): Stage => stageOf(tape, nodes, options));
  const all = graph.nodes.map((_, index) => index);
  const program = { ...tape, ...contentsOf(tape), stages, dialect: options.dialect };
  if (program.folds.length > 0) return program;
  const wholeOf = (from: Tape): Model => modelOf(from, graph.name, all, { ...options, decode: true });
  // Of many tokens three products are as fast, and attention is faster. Sessions that pack matrices would pack them twice.
  const joining = options.dialect.compute === 'float16' || options.standIn === undefined;
  const joined = joining && stages.length > 1 ? joinProjections(tape, options.dialect, joins) : tape;
  const alone = ownNodes(joined, options.dialect);
  return {
    ...program,
    ...(stages.length > 1 && { whole: wholeOf(joined) }),
    ...(alone !== joined && { single: wholeOf(alone) }),
  };
}

/** Every model of a program. */
export function modelsOf({ stages, whole, single }: Program): readonly Model[] {
  const models = stages.flatMap((stage) => (stage.kind === 'shared' ? [stage.model] : [stage.decode, stage.prefill]));
  return [...models, ...(whole ? [whole] : []), ...(single ? [single] : [])];
}

/** Sentences about the nodes that cannot be lowered. */
export function unsupportedNodes(graph: LayerGraph): readonly string[] {
  return inlineCalls(graph).nodes.flatMap((node, index) =>
    node.op === 'input' || node.op === 'output' || isStateful(node) || isTokenWise(node)
      ? []
      : [`${graph.name} node ${index}: onnx cannot run ${node.op}`],
  );
}

function contentsOf({ graph, shapeOf }: Tape): Contents {
  const each = <T>(pick: (node: Node, index: number) => T | undefined): T[] =>
    graph.nodes.flatMap((node, at) => pick(node, at) ?? []);
  return {
    inputs: each((node, at) => (node.op === 'input' ? { index: at, name: node.name, width: node.width } : undefined)),
    outputs: each((node) => (node.op === 'output' ? { name: node.name, value: node.x } : undefined)),
    embeddings: each((node, at) =>
      node.op === 'embed' ? { index: at, vocabulary: shapeOf(node.table)[0]! } : undefined,
    ),
    folds: each((node, at) => (node.op === 'foldState' ? { index: at, from: node.from } : undefined)),
  };
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

function stageOf(tape: Tape, indices: readonly number[], options: Omit<ModelOptions, 'decode'>): Stage {
  const [first] = indices;
  const { graph } = tape;
  const node = graph.nodes[first!]!;
  if (!isStateful(node)) {
    const name = `${graph.name} nodes ${first}-${indices.at(-1)}`;
    return { kind: 'shared', model: modelOf(tape, name, indices, { ...options, decode: false }) };
  }
  const [decode, prefill] = [true, false].map((one) =>
    modelOf(tape, `${graph.name} node ${first} (${node.op})`, indices, { ...options, decode: one }),
  );
  return { kind: 'row', node, decode: decode!, prefill: prefill! };
}
