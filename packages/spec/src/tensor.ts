/** What activations and states are made of. f16 travels as raw bits in a Uint16Array (Node 20 has no Float16Array). */
export type DType = 'f32' | 'f16' | 'i32' | 'u32';
/** What a checkpoint may store. */
export type StorageType = DType | 'bf16';

export interface TensorSpec {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface HostTensor extends TensorSpec {
  readonly data: Float32Array | Uint16Array | Int32Array | Uint32Array;
}

export const bytesPerElement: Readonly<Record<StorageType, number>> = { f32: 4, f16: 2, bf16: 2, i32: 4, u32: 4 };

/** Product of the dimensions; 1 for a scalar. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** A float32 host tensor. Length of `data` must equal the product of `shape`. */
export function f32(shape: readonly number[], data: Float32Array): HostTensor {
  return { dtype: 'f32', shape, data };
}
