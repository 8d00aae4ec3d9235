import {
  checkStateContent,
  checkStateSize,
  DslaError,
  elementCount,
  f32,
  type HostTensor,
  partShape,
  type StateSpec,
  type StateStore,
  stateCapacity,
} from '@dsla/spec';
import type { Binding, Memory, Region } from './binding/binding.js';
import { partType } from './dialect.js';
import { disposed, invalid } from './errors.js';
import { packed, unpacked } from './numbers.js';
import type { Order } from './order.js';
import type { Pool } from './pool.js';
import { type ElementType, elementBytes } from './protobuf.js';

/** Slots of memory, taken at their first use and given back by `clear`; sessions write into them in place. */
export class OnnxStore implements StateStore {
  readonly spec: StateSpec;
  readonly slots: number;
  readonly tokens: number;
  /** Longest row, in tokens: Infinity where the state does not grow with them. */
  readonly capacity: number;
  readonly #pool: Pool;
  readonly #order: Order;
  readonly #shapes: readonly (readonly number[])[];
  /** How the parts are held. */
  readonly #types: readonly ElementType[];
  readonly #slots = new Map<number, readonly Memory[]>();
  /** By part, where slots lie side by side. */
  readonly #regions: readonly (Region | undefined)[];
  #gone = false;

  constructor(spec: StateSpec, slots: number, tokens: number, binding: Binding, pool: Pool, order: Order) {
    checkStateSize(spec, slots, tokens);
    this.spec = spec;
    this.slots = slots;
    this.tokens = tokens;
    this.capacity = stateCapacity(spec, tokens);
    this.#pool = pool;
    this.#order = order;
    this.#shapes = spec.parts.map((part) => partShape(part, tokens));
    this.#types = spec.parts.map(({ dtype }) => partType(binding.dialect, dtype));
    const bytes = this.#shapes.reduce((sum, _, part) => sum + this.#bytesOf(part), 0);
    const free = binding.available();
    if (bytes > free)
      throw new DslaError('E_MEMORY', {
        where: `createState ${spec.name}`,
        rule: `a slot takes ${bytes} bytes of memory, ${free} are available`,
        cure: 'Choose a smaller capacity.',
        details: { wanted: bytes, free },
      });
    this.#regions = this.#shapes.map((_, part) => binding.region(this.#bytesOf(part), slots));
  }

  get bytes(): number {
    let bytes = 0;
    for (const parts of this.#slots.values()) for (const part of parts) bytes += part.bytes;
    return bytes;
  }

  /** The parts of a slot, taken if need be. @throws DslaError E_MEMORY */
  parts(slot: number): readonly Memory[] {
    this.check(slot);
    let parts = this.#slots.get(slot);
    if (!parts) {
      parts = this.#take(slot);
      this.#slots.set(slot, parts);
    }
    return parts;
  }

  clear(slot: number): void {
    this.check(slot);
    const parts = this.#slots.get(slot);
    this.#slots.delete(slot);
    if (!parts) return;
    this.#order.after(() => {
      for (const part of parts) this.#pool.give(part);
    });
  }

  copy(from: number, to: number): void {
    this.check(from);
    const source = this.#slots.get(from);
    if (!source) {
      this.clear(to);
      return;
    }
    const target = this.parts(to);
    this.#order.after(() => {
      source.forEach((part, index) => {
        target[index]!.copy(part, 0, 0, part.bytes);
      });
    });
  }

  async export(slot: number): Promise<readonly HostTensor[]> {
    this.check(slot);
    const parts = this.#slots.get(slot);
    return await this.#order.run(async () => {
      const contents = this.#shapes.map(async (shape, index) => {
        const data = parts && (await parts[index]!.read(this.#bytesOf(index)));
        return f32(shape, data ? unpacked(data, this.#types[index]!) : new Float32Array(elementCount(shape)));
      });
      return await Promise.all(contents);
    });
  }

  import(slot: number, parts: readonly HostTensor[]): void {
    this.check(slot);
    checkStateContent(this.spec, this.tokens, parts);
    const target = this.parts(slot);
    const content = parts.map(({ data }, index) => packed(Float32Array.from(data), this.#types[index]!));
    this.#order.after(() => {
      content.forEach((data, index) => {
        target[index]!.write(data);
      });
    });
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    for (const slot of [...this.#slots.keys()]) this.clear(slot);
    this.#order.after(() => {
      for (const region of this.#regions) region?.free();
    });
    this.#gone = true;
  }

  /** @throws DslaError E_DISPOSED, E_INPUT */
  check(slot: number): void {
    if (this.#gone) throw disposed(`state ${this.spec.name}`);
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.slots)
      throw invalid(`state ${this.spec.name}`, `slot must be an integer in 0..${this.slots - 1}`, slot);
  }

  #bytesOf(part: number): number {
    return elementBytes[this.#types[part]!] * elementCount(this.#shapes[part]!);
  }

  #take(slot: number): readonly Memory[] {
    const taken: Memory[] = [];
    try {
      for (const part of this.#shapes.keys()) {
        const region = this.#regions[part];
        const [bytes, where] = [this.#bytesOf(part), `state ${this.spec.name}`];
        taken.push(region ? this.#pool.takeAt(region, slot, bytes, where) : this.#pool.take(bytes, where));
      }
    } catch (error) {
      for (const memory of taken) this.#pool.give(memory);
      throw error;
    }
    return taken;
  }
}
