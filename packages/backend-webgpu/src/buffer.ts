import { type DeviceBuffer, DslaError, type DType } from '@dsla/spec';

/** A matrix on the device: an upload, or a named value of a step. */
export class WebgpuBuffer implements DeviceBuffer {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly bytes: number;
  readonly #name: string;
  readonly #release: (buffer: GPUBuffer) => void;
  #buffer: GPUBuffer | undefined;

  constructor(
    name: string,
    dtype: DType,
    shape: readonly number[],
    bytes: number,
    buffer: GPUBuffer,
    release: (buffer: GPUBuffer) => void,
  ) {
    this.#name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.bytes = bytes;
    this.#buffer = buffer;
    this.#release = release;
  }

  /** @throws DslaError E_DISPOSED */
  get buffer(): GPUBuffer {
    if (!this.#buffer) throw disposed(this.#name);
    return this.#buffer;
  }

  [Symbol.dispose](): void {
    if (this.#buffer) this.#release(this.#buffer);
    this.#buffer = undefined;
  }
}

/** The error of every use after dispose. */
export function disposed(where: string): DslaError {
  return new DslaError('E_DISPOSED', {
    where,
    rule: 'must not be used after dispose',
    cure: 'Keep it alive for as long as it is used.',
  });
}

export function invalid(where: string, rule: string, got: unknown): DslaError {
  return new DslaError('E_INPUT', { where, rule, got });
}
