import type { Tensor } from './binding/binding.js';
import type { ControlData } from './lowering.js';
import type { Pool } from './pool.js';
import type { ElementType } from './protobuf.js';
import type { Recorded } from './record.js';

/** Makes a small input from what a step runs. */
export type Make = (runs: readonly Recorded[]) => ControlData;

interface Input {
  readonly tensor: Tensor;
  readonly make: Make;
  readonly onHost: boolean;
  data: ControlData['data'];
}

/** The small inputs of one step: each made once, however many layers want it. */
export class HostInputs {
  readonly #pool: Pool;
  readonly #sizePool: Pool;
  readonly #runs: readonly Recorded[];
  readonly #tensors = new Map<string, Map<number | string, Tensor>>();
  readonly #made: Input[] = [];
  /** The last renewal changed one that operators read on the host. */
  resized = false;

  constructor(pool: Pool, sizePool: Pool, runs: readonly Recorded[]) {
    this.#pool = pool;
    this.#sizePool = sizePool;
    this.#runs = runs;
  }

  /** `of` tells apart the rows, or groups of rows, that a kind of input is made for. */
  get(kind: string, of: number | string, type: ElementType, make: Make, onHost: boolean = false): Tensor {
    let known = this.#tensors.get(kind);
    if (!known) {
      known = new Map();
      this.#tensors.set(kind, known);
    }
    let tensor = known.get(of);
    if (!tensor) {
      const { dims, data } = make(this.#runs);
      const memory = (onHost ? this.#sizePool : this.#pool).borrow(data.byteLength, 'inputs of a step');
      memory.write(data);
      tensor = { memory, offset: 0, type, dims };
      known.set(of, tensor);
      this.#made.push({ tensor, make, onHost, data });
    }
    return tensor;
  }

  /** Makes the same inputs for another step; false, with nothing changed, where one has another shape now. */
  renew(runs: readonly Recorded[]): boolean {
    const contents = this.#made.map(({ make }) => make(runs));
    const fits = contents.every(({ dims }, at) => dims.join() === this.#made[at]!.tensor.dims.join());
    if (!fits) return false;
    this.resized = false;
    for (const [at, { data }] of contents.entries()) {
      const input = this.#made[at]!;
      if (same(data, input.data)) continue;
      input.data = data;
      input.tensor.memory.write(data);
      this.resized ||= input.onHost;
    }
    return true;
  }

  /** The next step borrows the same memory in the same order. */
  release(): void {
    for (const { tensor, onHost } of [...this.#made].reverse())
      (onHost ? this.#sizePool : this.#pool).giveBack(tensor.memory);
  }
}

function same(a: ControlData['data'], b: ControlData['data']): boolean {
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return false;
  return a.length === b.length;
}
