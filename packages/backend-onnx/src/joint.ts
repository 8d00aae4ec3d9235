import {
  elementCount,
  type HostTensor,
  type Node,
  type NodeOf,
  operandsOf,
  type Value,
  type Weight,
  type WeightSource,
} from '@dsla/spec';
import type { Dialect } from './dialect.js';
import { fused, type PackedAttention } from './nodes/softmax-attention.js';
import type { Tape } from './tape.js';

// Queries, keys and values of a token in one product: one matrix of many rows is read faster than three of few.

/** Weights that lie one after the other, with a name of their own: [rows of all, width]. */
export interface Joint {
  readonly name: Weight;
  readonly members: readonly Weight[];
}

/**
 * Where softmax attention alone reads three linear maps of one value they become one, in the place of the first of them; other
 * values keep their indices. `joins`: whether weights can be had side by side.
 */
export function joinProjections(tape: Tape, dialect: Dialect, joins: (joint: Joint) => boolean): Tape {
  const { graph, widths, shapeOf } = tape;
  const joined = graph.nodes
    .flatMap((_, at) => projectionsOf(at, tape, dialect) ?? [])
    .filter(({ weight, bias }) => {
      return joins(weight) && (!bias || joins(bias));
    });
  if (joined.length === 0) return tape;
  const byValue = new Map(joined.flatMap((each) => each.values.map((value) => [value, each] as const)));
  const byAttention = new Map(joined.map((each) => [each.attention, each] as const));
  const nodes = graph.nodes.map((node, at): Node => {
    const [projection, attention] = [byValue.get(at), byAttention.get(at)];
    if (projection) return at === projection.values[0] ? asOne(projection) : nothing;
    return attention ? packed(node, attention.values[0]!) : node;
  });
  const shapes = new Map<Weight, readonly number[]>();
  for (const { weight, bias } of joined)
    for (const { name, members } of bias ? [weight, bias] : [weight]) shapes.set(name, jointShape(members, shapeOf));
  const joinedWidths = widths.map((width, at) => {
    const { values } = byValue.get(at) ?? {};
    return values?.[0] === at ? sum(values.map((value) => widths[value]!)) : width;
  });
  return { graph: { ...graph, nodes }, widths: joinedWidths, shapeOf: (name) => shapes.get(name) ?? shapeOf(name) };
}

/** In the place of a value that is part of another. */
const nothing: Node = { op: 'input', name: '', width: 0 };

interface Projections {
  readonly attention: Value;
  /** Of the linear maps, in order. */
  readonly values: readonly Value[];
  readonly x: Value;
  readonly weight: Joint;
  readonly bias?: Joint;
}

function packed(node: Node, value: Value): PackedAttention {
  return { ...(node as NodeOf<'softmaxAttention'>), q: value, k: value, v: value, packed: true };
}

function asOne({ x, weight, bias }: Projections): Node {
  return { op: 'linear', x, weight: weight.name, ...(bias && { bias: bias.name }) };
}

/** The linear maps that an attention reads, where they may become one. */
function projectionsOf(attention: Value, { graph, shapeOf }: Tape, dialect: Dialect): Projections | undefined {
  const node = graph.nodes[attention]!;
  if (node.op !== 'softmaxAttention' || node.window || !fused(node, dialect)) return undefined;
  const values = [node.q, node.k, node.v];
  const maps = values.map((value) => graph.nodes[value]!);
  if (!maps.every((map) => map.op === 'linear')) return undefined;
  const [{ x }] = maps as [NodeOf<'linear'>];
  const weights = maps.map(({ weight }) => weight);
  const biases = maps.flatMap(({ bias }) => bias ?? []);
  const alone = graph.nodes.every(
    (user, at) => at === attention || !operandsOf(user).some((of) => values.includes(of)),
  );
  const fit =
    alone &&
    maps.every((map) => map.x === x) &&
    new Set(weights).size === 3 &&
    weights.every((weight) => elementCount(shapeOf(weight)) % aligned === 0) &&
    (biases.length === 0 || new Set(biases).size === 3);
  if (!fit) return undefined;
  const bias = biases.length > 0 ? { bias: jointOf(biases) } : {};
  // The first in the tape becomes the joint one, which is all the same: they read the same x.
  return { attention, values: values.toSorted((a, b) => a - b), x, weight: jointOf(weights), ...bias };
}

/** Numbers of a matrix, so that the next one begins where kernels may read many at once: also in blocks of 4 bits. */
const aligned = 512;

function jointOf(members: readonly Weight[]): Joint {
  return { name: members.join(' + '), members };
}

export function jointShape(
  members: readonly Weight[],
  shapeOf: (weight: Weight) => readonly number[],
): readonly number[] {
  const shapes = members.map(shapeOf);
  return [sum(shapes.map(([rows]) => rows!)), ...shapes[0]!.slice(1)];
}

/** The members of a joint, read end to end. */
export async function readJoint({ members }: Joint, source: WeightSource, as: 'f32' | 'f16'): Promise<HostTensor> {
  const shape = jointShape(members, (name) => source.spec(name).shape);
  const data = as === 'f32' ? new Float32Array(elementCount(shape)) : new Uint16Array(elementCount(shape));
  let at = 0;
  for (const member of members) {
    const part = await source.read(member, as);
    data.set(part.data as typeof data, at);
    at += part.data.length;
  }
  return { dtype: as, shape, data };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
