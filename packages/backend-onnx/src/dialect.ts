import type { DType } from '@dsla/spec';
import type { ElementType } from './protobuf.js';

/** Types of matrices in blocks: quantise.ts. */
export type Quantised = 'q8' | 'q4';

/** What lowering must know of the execution provider that will run a model. */
export interface Dialect {
  /** Type of values, weights and caches. States and all that is computed from gates stay float: float16 cannot decay slowly. */
  readonly compute: 'float' | 'float16';
  /** Of matrices, where they have a type of their own. */
  readonly weights?: Quantised | undefined;
  /** Widest head that the operator GroupQueryAttention takes; 0 where it does not run at all. */
  readonly fusedHead: number;
  /** It never holds the scores of more than a few queries. */
  readonly flash: boolean;
  /** The only size, features and values alike, of states that LinearAttention is fast at: others take ten times its parts. 0: it always is. */
  readonly fastState: number;
  /** Sizes that operators read on the host do not change from one decode step to the next, so that a step can be replayed. */
  readonly replays: boolean;
  /** Operators of our own (cuda/operator.ts) can be nodes of a graph. */
  readonly operators: boolean;
}

export const onCpu: Dialect = {
  compute: 'float',
  fusedHead: Number.POSITIVE_INFINITY,
  flash: false,
  fastState: 0,
  replays: false,
  operators: false,
};

/** ONNX Runtime's CUDA provider has GroupQueryAttention in half precision only, its fast kernels up to a head width of 256. */
export function onCuda(compute: Dialect['compute'], operators: boolean = false): Dialect {
  return { compute, fusedHead: compute === 'float16' ? 256 : 0, flash: true, fastState: 128, replays: true, operators };
}

/** The compute type as a backend tells it. */
export function computeType({ compute }: Dialect): Extract<DType, 'f32' | 'f16'> {
  return compute === 'float16' ? 'f16' : 'f32';
}

/** How a part of a state is held. */
export function partType({ compute }: Dialect, dtype: string): ElementType {
  return dtype === 'compute' ? compute : 'float';
}
