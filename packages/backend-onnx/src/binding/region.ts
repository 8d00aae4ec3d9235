import type { Memory, Region } from './binding.js';
import { outOfMemory } from './failures.js';
import { CApiMemory } from './memory.js';
import type { Handle } from './ort-api.js';
import type { Space } from './space.js';

/** Equal pieces of a space. */
export class CApiRegion implements Region {
  readonly #space: Space;
  readonly #stride: number;
  /** OrtMemoryInfo */
  readonly #info: Handle;
  readonly #available: () => number;
  readonly #forget: () => void;
  readonly #taken = new Map<number, CApiMemory>();
  /** Several pieces seen as one, by the first of them. */
  readonly #spans = new Map<number, Map<number, CApiMemory>>();
  #gone = false;

  /** `available`: bytes that could be taken now. */
  constructor(space: Space, stride: number, info: Handle, available: () => number, forget: () => void) {
    this.#available = available;
    this.#space = space;
    this.#stride = stride;
    this.#info = info;
    this.#forget = forget;
  }

  take(index: number, where: string): Memory | undefined {
    if (this.#taken.has(index)) return undefined;
    const bytes = this.#stride;
    const free = this.#available();
    const block = bytes > free ? undefined : this.#space.take(index * bytes, bytes);
    if (!block) throw outOfMemory(Math.ceil(bytes / this.#space.page) * this.#space.page, free, where);
    const memory = new CApiMemory(
      block,
      this.#info,
      this.#stride,
      () => this.#leave(index),
      (count) => this.#span(index, count),
    );
    this.#taken.set(index, memory);
    return memory;
  }

  free(): void {
    if (this.#gone) return;
    this.#gone = true;
    for (const memory of [...this.#taken.values()]) memory.free();
    this.#space.free();
    this.#forget();
  }

  #span(first: number, count: number): CApiMemory | undefined {
    let known = this.#spans.get(first)?.get(count);
    if (known) return known;
    for (let index = first; index < first + count; index++) if (!this.#taken.has(index)) return undefined;
    const address = this.#taken.get(first)!.address(0);
    const block = { address, write() {}, copy() {}, read: () => new ArrayBuffer(0), free() {} };
    known = new CApiMemory(block, this.#info, count * this.#stride, () => this.#spans.get(first)!.delete(count));
    this.#spans.set(first, (this.#spans.get(first) ?? new Map<number, CApiMemory>()).set(count, known));
    return known;
  }

  #leave(index: number): void {
    this.#taken.delete(index);
    for (const [first, spans] of this.#spans)
      for (const [count, memory] of [...spans]) if (first <= index && index < first + count) memory.free();
  }
}
