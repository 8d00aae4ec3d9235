import { DslaError } from '@dsla/spec';
import type { Operator } from '../cuda/operator.js';
import { ownDomain } from '../emit.js';
import { elementBytes, elementCode } from '../protobuf.js';
import type { Thread } from '../thread.js';
import type { Bound, CommandPlace, Commands, Memory, Pack, Session, Tensor } from './binding.js';
import type { CApiMemory } from './memory.js';
import type { Handle, OrtLibrary } from './ort-api.js';

// Handles of the C API that go once, and lists of what is to be done with them.

export class CApiPack implements Pack {
  readonly handle: Handle;
  readonly #library: OrtLibrary;
  readonly #forget: () => void;
  #gone = false;

  constructor(library: OrtLibrary, handle: Handle, forget: () => void) {
    this.#library = library;
    this.handle = handle;
    this.#forget = forget;
  }

  dispose(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#library.call('ReleasePrepackedWeightsContainer', this.handle);
    this.#library.trim();
    this.#forget();
  }
}

export class CApiSession implements Session {
  readonly handle: Handle;
  readonly #library: OrtLibrary;
  readonly #done: () => void;
  #gone = false;

  /** `done`: called when nobody uses it any more. */
  constructor(library: OrtLibrary, handle: Handle, done: () => void) {
    this.#library = library;
    this.handle = handle;
    this.#done = done;
  }

  bind(inputs: ReadonlyMap<string, Tensor>, outputs: ReadonlyMap<string, Tensor>): Bound {
    const library = this.#library;
    const binding = library.make('CreateIoBinding', this.handle);
    const attach = (kind: 'BindInput' | 'BindOutput', name: string, tensor: Tensor): void => {
      const value = tensorValue(library, tensor);
      library.call(kind, binding, name, value);
      library.call('ReleaseValue', value); // the binding holds a reference of its own
    };
    for (const [name, tensor] of inputs) attach('BindInput', name, tensor);
    for (const [name, tensor] of outputs) attach('BindOutput', name, tensor);
    return new CApiBound(library, this.handle, binding);
  }

  dispose(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#done();
  }
}

/** Bytes of what ONNX Runtime is told about an operator of our own (operators.js). */
const operatorBytes = 512;

/** Operators of our own that a session may have, for as long as it lives. */
export class OwnOperators {
  /** What the computing thread needs to tell them to ONNX Runtime before it makes the session. */
  readonly request: {
    readonly domain: Handle;
    readonly operators: readonly Operator[];
    readonly room: SharedArrayBuffer;
  };
  readonly #library: OrtLibrary;
  readonly #thread: Pick<Thread, 'tell'>;

  constructor(
    library: OrtLibrary,
    operators: readonly Operator[],
    sessionOptions: Handle,
    thread: Pick<Thread, 'tell'>,
  ) {
    this.#library = library;
    this.#thread = thread;
    const domain = library.make('CreateCustomOpDomain', ownDomain);
    library.call('AddCustomOpDomain', sessionOptions, domain);
    this.request = { domain, operators, room: new SharedArrayBuffer(operatorBytes * operators.length) };
  }

  dispose(): void {
    this.#library.call('ReleaseCustomOpDomain', this.request.domain);
    this.#thread.tell({ kind: 'dropOperators', room: this.request.room });
  }
}

export function tensorValue(library: OrtLibrary, { memory, offset, type, dims }: Tensor): Handle {
  const bytes = dims.reduce((product, size) => product * size, elementBytes[type]);
  if (offset + bytes > memory.bytes)
    throw new DslaError('E_INTERNAL', {
      where: 'onnx',
      rule: `a tensor must lie within its ${memory.bytes} bytes of memory`,
      got: offset + bytes,
    });
  const { info } = memory as CApiMemory;
  const address = (memory as CApiMemory).address(offset);
  const sizes = BigInt64Array.from(dims, BigInt);
  const code = elementCode(type);
  return library.make('CreateTensorWithDataAsOrtValue', info, address, bytes, sizes, dims.length, code);
}

class CApiBound implements Bound {
  readonly session: Handle;
  readonly #library: OrtLibrary;
  #handle: Handle;

  constructor(library: OrtLibrary, session: Handle, handle: Handle) {
    this.#library = library;
    this.session = session;
    this.#handle = handle;
  }

  get alive(): boolean {
    return this.#handle !== 0n;
  }

  /** @throws DslaError E_INTERNAL */
  get handle(): Handle {
    if (this.#handle === 0n)
      throw new DslaError('E_INTERNAL', {
        where: 'onnx',
        rule: 'a binding must not be used after its memory is freed',
      });
    return this.#handle;
  }

  dispose(): void {
    if (this.#handle === 0n) return;
    this.#library.call('ReleaseIoBinding', this.#handle);
    this.#handle = 0n;
  }
}

let nextCommands = 1;

export class CApiCommands implements Commands {
  /** Their name in the computing thread. */
  readonly id: number = nextCommands++;
  /** Three numbers each: session, binding, 0 is a run; to, from, bytes a copy. */
  readonly list: bigint[] = [];
  readonly places: (CommandPlace | undefined)[] = [];
  /** The sizes of what ran last are no longer these. */
  stale = false;
  /** The thread has them; nothing is added any more. */
  known = false;
  readonly #forget: (id: number) => void;

  /** `forget`: called when they are disposed, if the thread has them. */
  constructor(forget: (id: number) => void) {
    this.#forget = forget;
  }

  run(bound: Bound, at: CommandPlace): void {
    const { session, handle } = bound as CApiBound;
    this.places[this.list.push(session, handle, 0n) / 3 - 1] = at;
  }

  copy(from: Memory, fromByte: number, to: Memory, toByte: number, bytes: number): void {
    if (bytes === 0) return;
    this.list.push((to as CApiMemory).address(toByte), (from as CApiMemory).address(fromByte), BigInt(bytes));
  }

  resized(): void {
    this.stale = true;
  }

  dispose(): void {
    if (this.known) this.#forget(this.id);
  }
}
