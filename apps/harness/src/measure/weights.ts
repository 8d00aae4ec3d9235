import type { ModelDescription, Plan } from '@dsla/models';
import { bytesPerElement, type DType, elementCount, type Weight, weightsOf } from '@dsla/spec';

/** Weights that a plan reads, each once. */
function weightsOfPlan({ segments, head }: ModelDescription, plan: Plan): ReadonlySet<Weight> {
  const tapes = segments.map(({ layer, versions }) => {
    const mixer = layer === undefined ? undefined : plan[layer];
    return (mixer === undefined ? undefined : versions[mixer]) ?? versions.default;
  });
  return new Set([...tapes, head].flatMap(weightsOf));
}

/** Bytes that the weights of a plan take on a device. */
export function weightBytes(description: ModelDescription, plan: Plan, compute: DType): number {
  return parameterCount(description, plan) * bytesPerElement[compute];
}

/** Numbers in the weights of a plan; tied ones count once. */
export function parameterCount(description: ModelDescription, plan: Plan): number {
  const refs = [...weightsOfPlan(description, plan)].map((name) => description.weights[name]!);
  const parts = new Map(
    refs.map((ref) => [JSON.stringify([ref.tensors, ref.index, ref.rows]), elementCount(ref.shape)]),
  );
  return [...parts.values()].reduce((sum, count) => sum + count, 0);
}
