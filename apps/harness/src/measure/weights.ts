import type { ModelDescription, Plan } from '@dsla/models';
import { bytesPerElement, type DType, elementCount, type LayerGraph, type Weight, weightsOf } from '@dsla/spec';

/** What a plan runs. */
function tapesOfPlan({ segments, head }: ModelDescription, plan: Plan): LayerGraph[] {
  const tapes = segments.map(({ layer, versions }) => {
    const mixer = layer === undefined ? undefined : plan[layer];
    return (mixer === undefined ? undefined : versions[mixer]) ?? versions.default;
  });
  return [...tapes, head];
}

/** Bytes a number of a block of 32 takes, its share of the float16 scale included. */
const blockBytes = { q8: 34 / 32, q4: 18 / 32 };

/**
 * Bytes that the weights of a plan take on a device, by their formats; with `blocks`, those of its products in blocks, also where
 * a backend leaves some of them (narrow ones) as they are.
 */
export function weightBytes(
  description: ModelDescription,
  plan: Plan,
  compute: DType,
  blocks?: keyof typeof blockBytes,
): number {
  const all = parameterCount(description, plan) * bytesPerElement[compute];
  if (!blocks) return all;
  const matrices = tapesOfPlan(description, plan).flatMap(({ nodes }) =>
    nodes.flatMap((node) => (node.op === 'linear' ? node.weight : [])),
  );
  return all - countOf(description, new Set(matrices)) * (bytesPerElement[compute] - blockBytes[blocks]);
}

/** Numbers in the weights of a plan; tied ones count once. */
export function parameterCount(description: ModelDescription, plan: Plan): number {
  return countOf(description, new Set(tapesOfPlan(description, plan).flatMap(weightsOf)));
}

/** Numbers in these weights, each place of a checkpoint once. */
function countOf(description: ModelDescription, names: ReadonlySet<Weight>): number {
  const refs = [...names].map((name) => description.weights[name]!);
  const parts = new Map(
    refs.map((ref) => [JSON.stringify([ref.tensors, ref.index, ref.rows]), elementCount(ref.shape)]),
  );
  return [...parts.values()].reduce((sum, count) => sum + count, 0);
}
