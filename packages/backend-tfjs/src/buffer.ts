import type { DeviceBuffer } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import { bytesOf, disposed, type Holder, invalid } from './memory.js';

/** A tensor with an owner. */
export class TfjsBuffer implements DeviceBuffer {
  readonly dtype: 'f32' | 'i32';
  readonly shape: readonly number[];
  readonly bytes: number;
  readonly #name: string;
  readonly #holder: Holder;
  #tensor: Tensor | undefined;

  /** Takes the tensor over. */
  constructor(name: string, tensor: Tensor, holder: Holder) {
    this.dtype = tensor.dtype === 'int32' ? 'i32' : 'f32';
    this.shape = tensor.shape;
    this.bytes = bytesOf(tensor);
    this.#name = name;
    this.#holder = holder;
    this.#tensor = holder.keep(tensor);
  }

  /** @throws DslaError E_DISPOSED */
  get tensor(): Tensor {
    if (!this.#tensor || this.#tensor.isDisposed) throw disposed(this.#name);
    return this.#tensor;
  }

  /** Takes over another tensor of the same shape in its place. */
  replace(tensor: Tensor): void {
    if (this.#tensor) this.#holder.release(this.#tensor);
    this.#tensor = this.#holder.keep(tensor);
  }

  [Symbol.dispose](): void {
    if (this.#tensor) this.#holder.release(this.#tensor);
    this.#tensor = undefined;
  }
}

/** The tensor of a buffer that this backend made. @throws DslaError E_INPUT */
export function tensorOf(buffer: DeviceBuffer, where: string): Tensor {
  if (buffer instanceof TfjsBuffer) return buffer.tensor;
  throw invalid(where, 'must be a buffer of this backend', typeof buffer);
}
