import type { ModelDescription, Plan, Segment } from '@dsla/models';
import { DslaError, joinGraphs, type LayerGraph, type Node, type NodeOf, type Weight } from '@dsla/spec';

// The tapes that training runs. A layer is three segments: `project` (x to q, k, v), `attention` (to o), `output` (to x).

/** What a layer's attention adds to the residual, [N, hidden]; compared between teacher and student. */
export const attended = 'y';
/** Gate logits of a dual layer, [N, states * kvHeads (* headDim)]. */
export const gateLogits = 'gates';

export interface MatchTapes {
  /** ids to the inputs of `student`, and to `y` of softmax attention. */
  readonly teacher: LayerGraph;
  /** The layer's own inputs to `y`, and to `gates` where the mixer has them. */
  readonly student: LayerGraph;
  readonly dual: NodeOf<'dualLinearAttention'> | undefined;
}

/** Tapes that compare a mixer with softmax attention in one layer, on the teacher's inputs. */
export function matchTapes(description: ModelDescription, layer: number, mixer: string): MatchTapes {
  const { before, own } = split(description, layer);
  const { project, attention, output } = own;
  const mixed = project.versions[mixer];
  const parts = [versionOf(attention, mixer), projectionOf(versionOf(output, mixer))];
  const joined = joinGraphs(mixed ? [mixed, ...parts] : parts, new Set([attended]));
  const dual = joined.nodes.findIndex(({ op }) => op === 'dualLinearAttention');
  const node = joined.nodes[dual] as NodeOf<'dualLinearAttention'> | undefined;
  const student = node ? withOutput(joined, gateLogits, node.gates) : joined;
  const teacher = [...before, project.versions.default, attention.versions.default];
  const keep = new Set([attended, ...inputsOf(student)]);
  return { teacher: joinGraphs([...teacher, projectionOf(output.versions.default)], keep), student, dual: node };
}

/** The whole model under a plan as one tape: ids to `logits` of every token. */
export function modelTape({ segments, headAll }: ModelDescription, plan: Plan): LayerGraph {
  const body = segments.map((segment) => versionOf(segment, plan[layerOf(segment)] ?? 'default'));
  return joinGraphs([...body, headAll], new Set(['logits']));
}

/** ids to q and k of a layer before rotation, with its softmax node. */
export function queryKeyTape(
  description: ModelDescription,
  layer: number,
): { readonly tape: LayerGraph; readonly attention: NodeOf<'softmaxAttention'> } {
  const { before, own } = split(description, layer);
  const node = own.attention.versions.default.nodes.find(({ op }) => op === 'softmaxAttention');
  return {
    tape: joinGraphs([...before, own.project.versions.default], new Set(['q', 'k'])),
    attention: node as NodeOf<'softmaxAttention'>,
  };
}

/** Tuned weights of a layer: those that no base checkpoint shares. */
export function weightsOfMixer(description: ModelDescription, layer: number, mixer: string): Weight[] {
  const prefix = `layers.${layer}.${mixer}.`;
  return Object.keys(description.weights).filter((name) => name.startsWith(prefix));
}

/** Named values that a tape reads. */
export function inputsOf({ nodes }: LayerGraph): string[] {
  return nodes.flatMap((node) => (node.op === 'input' ? [node.name] : []));
}

interface LayerSegments {
  readonly project: Segment;
  readonly attention: Segment;
  readonly output: Segment;
}

/** The segments of a layer and, under the model's own attention, all below. */
function split({ segments }: ModelDescription, layer: number): { before: LayerGraph[]; own: LayerSegments } {
  const at = segments.findIndex((segment) => layerOf(segment) === layer);
  const [project, attention, output] = segments.slice(at, at + 3);
  if (at < 0 || !project || !attention || !output) {
    throw new DslaError('E_INPUT', {
      where: 'distill',
      rule: 'the model must have such a layer to convert',
      got: layer,
    });
  }
  return {
    before: segments.slice(0, at).map(({ versions }) => versions.default),
    own: { project, attention, output },
  };
}

/** `layers.3.attention` is of layer 3; embed of none. A segment names its layer only where its versions differ. */
function layerOf({ name }: Segment): number {
  return Number(/^layers\.(\d+)\./.exec(name)?.[1] ?? -1);
}

function versionOf({ versions }: Segment, mixer: string): LayerGraph {
  return versions[mixer] ?? versions.default;
}

/** The first linear map of an `output` tape: o to what is added to the residual. */
function projectionOf({ name, nodes }: LayerGraph): LayerGraph {
  const o = nodes.findIndex((node) => node.op === 'input' && node.name === 'o');
  const linear = nodes.find((node) => node.op === 'linear' && node.x === o) as NodeOf<'linear'>;
  const kept: Node[] = [nodes[o]!, { ...linear, x: 0 }, { op: 'output', name: attended, x: 1 }];
  return { name, nodes: kept, states: [] };
}

function withOutput(graph: LayerGraph, name: string, x: number): LayerGraph {
  return { ...graph, nodes: [...graph.nodes, { op: 'output', name, x }] };
}
