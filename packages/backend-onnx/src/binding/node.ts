import { type Dialect, onCpu } from '../dialect.js';
import { disposed } from '../errors.js';
import { startThread, type Thread } from '../thread.js';
import type {
  Binding,
  BindingOptions,
  Bound,
  CommandPlace,
  Commands,
  Memory,
  Pack,
  Session,
  SessionRequest,
  Tensor,
} from './binding.js';
import { atCommand, deviceError, outOfMemory, refuseAbsurd } from './failures.js';

/**
 * onnxruntime-node's own binding, used inside the computing thread: sessions, tensors and their memory live there (it takes
 * no shared memory). It writes outputs in place and copies them as well.
 */
export async function openNode(version: string, options: BindingOptions): Promise<Binding> {
  return new NodeBinding(await startThread({ binding: 'node', ...options }), version, options);
}

let nextId = 1;

class NodeMemory implements Memory {
  readonly id: number = nextId++;
  readonly bytes: number;
  readonly bound: Set<{ dispose(): void }> = new Set();
  readonly #thread: Thread;
  #gone = false;

  /** Hands a buffer over to the thread. */
  constructor(buffer: ArrayBuffer, thread: Thread) {
    this.bytes = buffer.byteLength;
    this.#thread = thread;
    thread.tell({ kind: 'hold', memory: this.id, buffer }, [buffer]);
  }

  write(data: ArrayBufferView): void {
    const copy = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
    this.#thread.tell({ kind: 'write', memory: this.held, data: copy }, [copy.buffer]);
  }

  copy(from: Memory, fromByte: number, toByte: number, bytes: number): void {
    this.#thread.tell({ kind: 'copy', memory: this.held, toByte, from: (from as NodeMemory).held, fromByte, bytes });
  }

  async read(bytes: number): Promise<ArrayBuffer> {
    return (await this.#thread.ask({ kind: 'read', memory: this.held, bytes })) as ArrayBuffer;
  }

  free(): void {
    if (this.#gone) return;
    this.#gone = true;
    for (const each of this.bound) each.dispose();
    this.#thread.tell({ kind: 'drop', memory: this.id });
  }

  /** Its name in the thread. @throws DslaError E_DISPOSED */
  get held(): number {
    if (this.#gone) throw disposed('memory');
    return this.id;
  }
}

class NodeBinding implements Binding {
  readonly description: string;
  readonly dialect: Dialect;
  readonly standIn = undefined;
  readonly traffic = undefined;
  readonly replayed = false;
  readonly run = undefined;
  readonly lost: Promise<Error>;
  readonly #thread: Thread;

  constructor(thread: Thread, version: string, { threads, weights }: BindingOptions) {
    this.dialect = { ...onCpu, weights };
    this.description = `ONNX Runtime ${version}, CPU, ${threads} threads a session, onnxruntime-node's own binding`;
    this.lost = thread.lost;
    this.#thread = thread;
  }

  available(): number {
    return process.availableMemory();
  }

  allocate(bytes: number, where: string): Memory {
    refuseAbsurd(bytes, where);
    try {
      return new NodeMemory(new ArrayBuffer(bytes), this.#thread);
    } catch (cause) {
      throw outOfMemory(bytes, this.available(), where, cause);
    }
  }

  region(): undefined {}

  async ready(): Promise<boolean> {
    return true;
  }

  pack(): Pack {
    return { dispose() {} };
  }

  async session({ model, where }: SessionRequest): Promise<Session> {
    const id = nextId++;
    try {
      await this.#thread.ask({ kind: 'create', session: id, model });
    } catch (error) {
      throw deviceError(error, where);
    }
    return new NodeSession(id, this.#thread);
  }

  commands(): Commands {
    return new NodeCommands();
  }

  async execute(commands: Commands): Promise<void> {
    const { list, places } = commands as NodeCommands;
    try {
      await this.#thread.ask({ kind: 'execute', commands: list });
    } catch (error) {
      throw deviceError(error, atCommand(error, places));
    }
  }

  get computed(): number {
    return this.#thread.computed;
  }

  async close(): Promise<void> {
    await this.#thread.close();
  }
}

class NodeSession implements Session {
  readonly #id: number;
  readonly #thread: Thread;
  #gone = false;

  constructor(id: number, thread: Thread) {
    this.#id = id;
    this.#thread = thread;
  }

  bind(inputs: ReadonlyMap<string, Tensor>, outputs: ReadonlyMap<string, Tensor>): Bound {
    const parts = (tensors: ReadonlyMap<string, Tensor>) =>
      Array.from(tensors, ([name, { memory, offset, type, dims }]) => ({
        name,
        memory: (memory as NodeMemory).held,
        offset,
        type,
        dims,
      }));
    const bound = new NodeBound(this.#thread);
    this.#thread.tell({
      kind: 'bind',
      bound: bound.id,
      session: this.#id,
      inputs: parts(inputs),
      outputs: parts(outputs),
    });
    return bound;
  }

  dispose(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#thread.tell({ kind: 'release', session: this.#id });
  }
}

class NodeBound implements Bound {
  readonly id: number = nextId++;
  readonly #thread: Thread;
  alive = true;

  constructor(thread: Thread) {
    this.#thread = thread;
  }

  dispose(): void {
    if (!this.alive) return;
    this.alive = false;
    this.#thread.tell({ kind: 'unbind', bound: this.id });
  }
}

class NodeCommands implements Commands {
  /** [bound] runs, [to, byte, from, byte, bytes] copies. */
  readonly list: number[][] = [];
  readonly places: (CommandPlace | undefined)[] = [];

  run(bound: Bound, at: CommandPlace): void {
    this.places[this.list.push([(bound as NodeBound).id]) - 1] = at;
  }

  copy(from: Memory, fromByte: number, to: Memory, toByte: number, bytes: number): void {
    this.list.push([(to as NodeMemory).held, toByte, (from as NodeMemory).held, fromByte, bytes]);
  }

  resized(): void {}

  dispose(): void {}
}
