import type { DeviceBuffer, DType } from '@dsla/spec';
import { disposed, type Tally } from './tensor.js';

/** A matrix in float64 that calls itself f32, or i32: what goes in and comes out is of that type. */
export class ReferenceBuffer implements DeviceBuffer {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly #name: string;
  readonly #tally: Tally;
  #data: Float64Array | undefined;

  constructor(name: string, shape: readonly number[], data: Float64Array, tally: Tally, dtype: 'f32' | 'i32' = 'f32') {
    this.#name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.#data = data;
    this.#tally = tally;
  }

  get bytes(): number {
    return this.#data?.byteLength ?? 0;
  }

  /** @throws DslaError E_DISPOSED */
  get data(): Float64Array {
    if (!this.#data) throw disposed(this.#name);
    return this.#data;
  }

  [Symbol.dispose](): void {
    if (this.#data) this.#tally.give(this.#data);
    this.#data = undefined;
  }
}
