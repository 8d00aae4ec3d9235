import type { Binding, Memory, Region } from './binding/binding.js';

/** Largest block that is kept while no step uses it, in bytes. */
const kept = 2 ** 24;

/**
 * The memory of a device. What is in use is counted; blocks for values are handed out in sizes of powers of two and kept
 * for the next step, last returned first, so that a step like the one before meets the same blocks and their bindings.
 */
export class Pool {
  readonly #binding: Binding;
  readonly #onHost: boolean;
  readonly #idle = new Map<number, Memory[]>();
  /** Large ones that were used since the last trim. */
  readonly #fresh = new Set<Memory>();
  #buffers = 0;
  #bytes = 0;

  /** `onHost`: its memory is the host's, wherever the binding computes. */
  constructor(binding: Binding, onHost: boolean = false) {
    this.#binding = binding;
    this.#onHost = onHost;
  }

  get usage(): { readonly buffers: number; readonly bytes: number } {
    return { buffers: this.#buffers, bytes: this.#bytes };
  }

  /** Zeroed, of exactly this size. @throws DslaError E_MEMORY */
  take(bytes: number, where: string): Memory {
    const memory = this.#binding.allocate(bytes, where, this.#onHost);
    this.#count(1, bytes);
    return memory;
  }

  /** The same in a region, or elsewhere where its place is not free yet. @throws DslaError E_MEMORY */
  takeAt(region: Region, index: number, bytes: number, where: string): Memory {
    const memory = region.take(index, where);
    if (!memory) return this.take(bytes, where);
    this.#count(1, bytes);
    return memory;
  }

  give(memory: Memory): void {
    memory.free();
    this.#count(-1, -memory.bytes);
  }

  /** Of at least this size, with any content. @throws DslaError E_MEMORY */
  borrow(bytes: number, where: string): Memory {
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 256)));
    const memory = this.#idle.get(size)?.pop() ?? this.#binding.allocate(size, where, this.#onHost);
    this.use(memory);
    this.#count(1, size);
    return memory;
  }

  /** Says that a step uses the block. */
  use(memory: Memory): void {
    if (memory.bytes > kept) this.#fresh.add(memory);
  }

  isIdle(memory: Memory): boolean {
    return this.#idle.get(memory.bytes)?.includes(memory) ?? false;
  }

  /** A certain idle block. */
  reborrow(memory: Memory): void {
    const idle = this.#idle.get(memory.bytes)!;
    idle.splice(idle.lastIndexOf(memory), 1);
    this.use(memory);
    this.#count(1, memory.bytes);
  }

  giveBack(memory: Memory): void {
    let idle = this.#idle.get(memory.bytes);
    if (!idle) {
      idle = [];
      this.#idle.set(memory.bytes, idle);
    }
    idle.push(memory);
    this.#count(-1, -memory.bytes);
  }

  /** It stays with who has it, not counted as in use. */
  keep(memory: Memory): void {
    this.#count(-1, -memory.bytes);
  }

  /** A kept block may serve others. */
  letGo(memory: Memory): void {
    this.#count(1, memory.bytes);
    this.giveBack(memory);
  }

  /** Frees the large ones of the idle blocks that the last step did not use: a long prompt should not hold its memory for ever. */
  trim(): void {
    for (const [size, idle] of this.#idle) {
      if (size <= kept) continue;
      for (const memory of idle) if (!this.#fresh.has(memory)) memory.free();
      this.#idle.set(
        size,
        idle.filter((memory) => this.#fresh.has(memory)),
      );
    }
    this.#fresh.clear();
  }

  #count(buffers: number, bytes: number): void {
    this.#buffers += buffers;
    this.#bytes += bytes;
  }
}

/** A pool for every name, so that a value gets the block that a value of its name had before. */
export class NamedPools {
  readonly #binding: Binding;
  readonly #pools = new Map<string, Pool>();

  constructor(binding: Binding) {
    this.#binding = binding;
  }

  of(name: string): Pool {
    const pool = this.#pools.get(name) ?? new Pool(this.#binding);
    this.#pools.set(name, pool);
    return pool;
  }

  get all(): Iterable<Pool> {
    return this.#pools.values();
  }
}
