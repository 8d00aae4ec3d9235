import type { Memory, Tensor } from './binding/binding.js';
import type { ControlData } from './lowering.js';
import type { Pool } from './pool.js';
import { type ElementType, elementBytes } from './protobuf.js';
import type { Recorded } from './record.js';

/** What lies on the device already: [from, byte, bytes] end to end. */
export interface Gathered {
  readonly dims: readonly number[];
  readonly pieces: readonly (readonly [Memory, number, number])[];
}

/** Makes a small input from what a step runs. */
export type Make = (runs: readonly Recorded[]) => ControlData | Gathered;

interface Input {
  readonly tensor: Tensor;
  readonly make: Make;
  readonly onHost: boolean;
  /** What it holds, unless it was gathered. */
  data: ControlData['data'] | undefined;
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
      const content = make(this.#runs);
      const { dims } = content;
      const bytes = dims.reduce((product, size) => product * size, elementBytes[type]);
      const memory = (onHost ? this.#sizePool : this.#pool).borrow(bytes, 'inputs of a step');
      tensor = { memory, offset: 0, type, dims };
      known.set(of, tensor);
      const input: Input = { tensor, make, onHost, data: undefined };
      fill(input, content);
      this.#made.push(input);
    }
    return tensor;
  }

  /** Makes the same inputs for another step; false, with nothing changed, where one has another shape now. */
  renew(runs: readonly Recorded[]): boolean {
    const contents = this.#made.map(({ make }) => make(runs));
    const fits = contents.every(({ dims }, at) => dims.join() === this.#made[at]!.tensor.dims.join());
    if (!fits) return false;
    this.resized = false;
    for (const [at, content] of contents.entries()) {
      const input = this.#made[at]!;
      if (fill(input, content)) this.resized ||= input.onHost;
    }
    return true;
  }

  /** The next step borrows the same memory in the same order. */
  release(): void {
    for (const { tensor, onHost } of [...this.#made].reverse())
      (onHost ? this.#sizePool : this.#pool).giveBack(tensor.memory);
  }
}

/** Brings an input's content to where it belongs, unless it is there already. */
function fill(input: Input, content: ControlData | Gathered): boolean {
  const { memory } = input.tensor;
  if ('pieces' in content) {
    input.data = undefined;
    let at = 0;
    for (const [from, byte, bytes] of content.pieces) {
      memory.copy(from, byte, at, bytes);
      at += bytes;
    }
    return true;
  }
  if (input.data && same(content.data, input.data)) return false;
  input.data = content.data;
  memory.write(content.data);
  return true;
}

function same(a: ControlData['data'], b: ControlData['data']): boolean {
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return false;
  return a.length === b.length;
}
