import type { Commands, Memory, Tensor } from './binding/binding.js';
import type { ControlData } from './lowering.js';
import type { Pool } from './pool.js';
import { type ElementType, elementBytes } from './protobuf.js';
import type { Recorded } from './record.js';

/** What lies on the device already, or will when the step computes: [from, byte, bytes] end to end. */
export interface Gathered {
  readonly dims: readonly number[];
  readonly pieces: readonly Piece[];
}

type Piece = readonly [from: Memory, byte: number, bytes: number];

/** Makes a small input from what a step runs. */
export type Make = (runs: readonly Recorded[]) => ControlData | Gathered;

interface Input {
  readonly tensor: Tensor;
  readonly make: Make;
  readonly onHost: boolean;
  /** What it was made of last. */
  content: ControlData | Gathered;
}

/** The small inputs of a step, in memory of their own: each made once, however many layers want it. */
export class HostInputs {
  readonly #pool: Pool;
  readonly #sizePool: Pool;
  readonly #runs: readonly Recorded[];
  readonly #commands: Commands;
  readonly #tensors = new Map<string, Map<number | string, Tensor>>();
  readonly #made: Input[] = [];
  /** The last renewal changed one that operators read on the host. */
  resized = false;

  /** `commands`: bring together what lies on the device. */
  constructor(pool: Pool, sizePool: Pool, runs: readonly Recorded[], commands: Commands) {
    this.#commands = commands;
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
      const memory = this.#poolOf(onHost).borrow(bytes, 'inputs of a step');
      tensor = { memory, offset: 0, type, dims };
      known.set(of, tensor);
      this.#made.push({ tensor, make, onHost, content });
      if ('pieces' in content) this.#gather(content.pieces, memory);
      else memory.write(content.data);
    }
    return tensor;
  }

  /** Makes the same inputs for another step; false, with nothing changed, where one has another shape now. */
  renew(runs: readonly Recorded[]): boolean {
    const contents = this.#made.map(({ make }) => make(runs));
    if (!contents.every((content, at) => alike(content, this.#made[at]!.content))) return false;
    this.resized = false;
    for (const [at, content] of contents.entries()) {
      const input = this.#made[at]!;
      if ('pieces' in content || same(content.data, (input.content as ControlData).data)) continue;
      input.content = content;
      input.tensor.memory.write(content.data);
      this.resized ||= input.onHost;
    }
    return true;
  }

  /** What is here is no longer in use by a step; it stays here for the next one. */
  keep(): void {
    for (const { tensor, onHost } of this.#made) this.#poolOf(onHost).keep(tensor.memory);
  }

  /** Gives up what was kept. */
  letGo(): void {
    for (const { tensor, onHost } of this.#made) this.#poolOf(onHost).letGo(tensor.memory);
  }

  #poolOf(onHost: boolean): Pool {
    return onHost ? this.#sizePool : this.#pool;
  }

  #gather(pieces: readonly Piece[], to: Memory): void {
    let at = 0;
    for (const [from, byte, bytes] of together(pieces)) {
      this.#commands.copy(from, byte, to, at, bytes);
      at += bytes;
    }
  }
}

/** Neighbours as one. */
function together(pieces: readonly Piece[]): Piece[] {
  const joined: Piece[] = [];
  for (const piece of pieces) {
    const [from, byte, bytes] = joined.at(-1) ?? [];
    if (from === piece[0] && byte! + bytes! === piece[1]) joined.splice(-1, 1, [from, byte!, bytes! + piece[2]]);
    else joined.push(piece);
  }
  return joined;
}

/** Of the same shape, and from the same place where it is on the device. */
function alike(a: ControlData | Gathered, b: ControlData | Gathered): boolean {
  if (a.dims.join() !== b.dims.join()) return false;
  if (!('pieces' in a && 'pieces' in b)) return !('pieces' in a || 'pieces' in b);
  return (
    a.pieces.length === b.pieces.length &&
    a.pieces.every((piece, at) => piece.every((part, k) => part === b.pieces[at]![k]))
  );
}

function same(a: ControlData['data'], b: ControlData['data']): boolean {
  return a === b || bytesOf(a).equals(bytesOf(b)); // by number an int64 would become a BigInt
}

function bytesOf({ buffer, byteOffset, byteLength }: ControlData['data']): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength);
}
