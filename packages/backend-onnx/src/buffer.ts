import { bytesPerElement, type DeviceBuffer, elementCount, f32, type HostTensor } from '@dsla/spec';
import type { Memory } from './binding/binding.js';
import { disposed, invalid } from './errors.js';
import { unpacked } from './numbers.js';
import type { Pool } from './pool.js';

/** A tensor of the device's compute type, or ids: an upload, or a named value of a step, which gets its memory when the step computes. */
export class OnnxBuffer implements DeviceBuffer {
  readonly dtype: 'f32' | 'f16' | 'i32';
  readonly shape: readonly number[];
  readonly #name: string;
  readonly #giveBack: (memory: Memory) => void;
  /** Where a named value's memory comes from. */
  readonly pool: Pool | undefined;
  #memory: Memory | undefined;
  #gone = false;
  /** Steps that read it and are not done. */
  #holders = 0;

  constructor(
    name: string,
    dtype: 'f32' | 'f16' | 'i32',
    shape: readonly number[],
    giveBack: (memory: Memory) => void,
    memory?: Memory,
    pool?: Pool,
  ) {
    this.pool = pool;
    this.#name = name;
    this.dtype = dtype;
    this.shape = shape;
    this.#giveBack = giveBack;
    this.#memory = memory;
  }

  get bytes(): number {
    return bytesPerElement[this.dtype] * elementCount(this.shape);
  }

  get filled(): boolean {
    return this.#memory !== undefined;
  }

  /** @throws DslaError E_DISPOSED, E_INPUT before the submit of its step. */
  get memory(): Memory {
    if (this.#holders === 0) this.check();
    if (!this.#memory) throw invalid(this.#name, 'must not be read before its step is submitted', 'a read');
    return this.#memory;
  }

  /** @throws DslaError E_DISPOSED */
  check(): void {
    if (this.#gone) throw disposed(this.#name);
  }

  /** Its content stays, even if it is disposed, until the holder lets go. */
  hold(): void {
    this.#holders += 1;
  }

  letGo(): void {
    this.#holders -= 1;
    if (this.#gone) this.#leave();
  }

  /** Takes memory for its content; what it had is given back. */
  set memory(memory: Memory) {
    if (this.#memory) this.#giveBack(this.#memory);
    this.#memory = memory;
  }

  /** A copy of the content, float16 as float32. */
  async read(): Promise<HostTensor> {
    const { shape, dtype } = this;
    const bytes = await this.memory.read(this.bytes);
    if (dtype === 'i32') return { dtype, shape, data: new Int32Array(bytes) };
    return f32(shape, unpacked(bytes, dtype === 'f16' ? 'float16' : 'float'));
  }

  [Symbol.dispose](): void {
    this.#gone = true;
    this.#leave();
  }

  #leave(): void {
    if (this.#holders > 0) return;
    if (this.#memory) this.#giveBack(this.#memory);
    this.#memory = undefined;
  }
}
