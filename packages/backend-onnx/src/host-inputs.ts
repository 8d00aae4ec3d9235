import type { Memory, Tensor } from './binding/binding.js';
import type { ControlData } from './lowering.js';
import type { Pool } from './pool.js';
import type { ElementType } from './protobuf.js';

/** The small inputs of one step: each made once, however many layers want it. */
export class HostInputs {
  readonly #pool: Pool;
  readonly #tensors = new Map<string, Map<number | string, Tensor>>();
  readonly #borrowed: Memory[] = [];

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  /** `of` tells apart the rows, or groups of rows, that a kind of input is made for. */
  get(kind: string, of: number | string, type: ElementType, make: () => ControlData): Tensor {
    let known = this.#tensors.get(kind);
    if (!known) {
      known = new Map();
      this.#tensors.set(kind, known);
    }
    let tensor = known.get(of);
    if (!tensor) {
      const { dims, data } = make();
      const memory = this.#pool.borrow(data.byteLength, 'inputs of a step');
      this.#borrowed.push(memory);
      memory.write(data);
      tensor = { memory, offset: 0, type, dims };
      known.set(of, tensor);
    }
    return tensor;
  }

  /** The next step borrows the same memory in the same order. */
  release(): void {
    for (const memory of this.#borrowed.reverse()) this.#pool.giveBack(memory);
    this.#borrowed.length = 0;
    this.#tensors.clear();
  }
}
