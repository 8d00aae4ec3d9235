import type { Memory, Tensor } from './binding/binding.js';
import type { ControlData } from './lowering.js';
import type { Pool } from './pool.js';
import type { ElementType } from './protobuf.js';
import type { Recorded } from './record.js';

/** Makes a small input from what a step runs. */
export type Make = (runs: readonly Recorded[]) => ControlData;

/** The small inputs of one step: each made once, however many layers want it. */
export class HostInputs {
  readonly #pool: Pool;
  readonly #runs: readonly Recorded[];
  readonly #tensors = new Map<string, Map<number | string, Tensor>>();
  readonly #made: { readonly tensor: Tensor; readonly make: Make }[] = [];

  constructor(pool: Pool, runs: readonly Recorded[]) {
    this.#pool = pool;
    this.#runs = runs;
  }

  /** `of` tells apart the rows, or groups of rows, that a kind of input is made for. */
  get(kind: string, of: number | string, type: ElementType, make: Make): Tensor {
    let known = this.#tensors.get(kind);
    if (!known) {
      known = new Map();
      this.#tensors.set(kind, known);
    }
    let tensor = known.get(of);
    if (!tensor) {
      const { dims, data } = make(this.#runs);
      const memory = this.#pool.borrow(data.byteLength, 'inputs of a step');
      memory.write(data);
      tensor = { memory, offset: 0, type, dims };
      known.set(of, tensor);
      this.#made.push({ tensor, make });
    }
    return tensor;
  }

  /** Makes the same inputs for another step; false, with nothing changed, where one has another shape now. */
  renew(runs: readonly Recorded[]): boolean {
    const contents = this.#made.map(({ make }) => make(runs));
    const fits = contents.every(({ dims }, at) => dims.join() === this.#made[at]!.tensor.dims.join());
    if (fits) for (const [at, { data }] of contents.entries()) this.#made[at]!.tensor.memory.write(data);
    return fits;
  }

  get memories(): readonly Memory[] {
    return this.#made.map(({ tensor }) => tensor.memory);
  }

  /** The next step borrows the same memory in the same order. */
  release(): void {
    for (const { tensor } of [...this.#made].reverse()) this.#pool.giveBack(tensor.memory);
  }
}
