import { type DeviceBuffer, elementCount } from '@dsla/spec';
import type { Memory } from './binding/binding.js';
import { disposed, invalid } from './errors.js';

/** A float32 tensor in host memory: an upload, or a named value of a step, which gets its memory when the step computes. */
export class OnnxBuffer implements DeviceBuffer {
  readonly dtype = 'f32';
  readonly shape: readonly number[];
  readonly #name: string;
  readonly #giveBack: (memory: Memory) => void;
  #memory: Memory | undefined;
  #gone = false;

  constructor(name: string, shape: readonly number[], giveBack: (memory: Memory) => void, memory?: Memory) {
    this.#name = name;
    this.shape = shape;
    this.#giveBack = giveBack;
    this.#memory = memory;
  }

  get bytes(): number {
    return 4 * elementCount(this.shape);
  }

  get filled(): boolean {
    return this.#memory !== undefined;
  }

  /** @throws DslaError E_DISPOSED, E_INPUT before the submit of its step. */
  get memory(): Memory {
    this.check();
    if (!this.#memory) throw invalid(this.#name, 'must not be read before its step is submitted', 'a read');
    return this.#memory;
  }

  /** @throws DslaError E_DISPOSED */
  check(): void {
    if (this.#gone) throw disposed(this.#name);
  }

  /** Takes memory for its content; what it had is given back. */
  set memory(memory: Memory) {
    if (this.#memory) this.#giveBack(this.#memory);
    this.#memory = memory;
  }

  /** A copy of the content. */
  async read(): Promise<Float32Array> {
    return new Float32Array(await this.memory.read(this.bytes));
  }

  [Symbol.dispose](): void {
    this.#gone = true;
    if (this.#memory) this.#giveBack(this.#memory);
    this.#memory = undefined;
  }
}
