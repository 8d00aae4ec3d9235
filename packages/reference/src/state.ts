import {
  checkStateContent,
  checkStateSize,
  elementCount,
  f32,
  type HostTensor,
  partShape,
  type StateSpec,
  type StateStore,
  stateCapacity,
} from '@dsla/spec';
import { disposed, invalid, type Tally } from './tensor.js';

/** States in float64, laid out as their spec says. A slot takes memory at its first use. */
export class ReferenceStore implements StateStore {
  readonly spec: StateSpec;
  readonly slots: number;
  readonly tokens: number;
  readonly #tally: Tally;
  readonly #shapes: readonly (readonly number[])[];
  readonly #memory = new Map<number, readonly Float64Array[]>();
  #gone = false;

  constructor(spec: StateSpec, slots: number, tokens: number, tally: Tally) {
    checkStateSize(spec, slots, tokens);
    this.spec = spec;
    this.slots = slots;
    this.tokens = tokens;
    this.#tally = tally;
    this.#shapes = spec.parts.map((part) => partShape(part, tokens));
  }

  /** Longest row, in tokens: Infinity where the state does not grow with them. */
  get capacity(): number {
    return stateCapacity(this.spec, this.tokens);
  }

  get bytes(): number {
    let bytes = 0;
    for (const parts of this.#memory.values()) for (const part of parts) bytes += part.byteLength;
    return bytes;
  }

  /** The parts of a slot, to be changed in place. @throws DslaError E_MEMORY */
  parts(slot: number): readonly Float64Array[] {
    this.#check(slot);
    let parts = this.#memory.get(slot);
    if (!parts) {
      parts = this.#shapes.map((shape) => this.#tally.take(`state ${this.spec.name}`, elementCount(shape)));
      this.#memory.set(slot, parts);
    }
    return parts;
  }

  clear(slot: number): void {
    this.#check(slot);
    for (const part of this.#memory.get(slot) ?? []) this.#tally.give(part);
    this.#memory.delete(slot);
  }

  copy(from: number, to: number): void {
    this.#check(from);
    this.#check(to);
    const source = this.#memory.get(from);
    if (!source) this.clear(to);
    else
      this.parts(to).forEach((part, index) => {
        part.set(source[index]!);
      });
  }

  async export(slot: number): Promise<readonly HostTensor[]> {
    this.#check(slot);
    const parts = this.#memory.get(slot);
    return this.#shapes.map((shape, index) =>
      f32(shape, parts ? Float32Array.from(parts[index]!) : new Float32Array(elementCount(shape))),
    );
  }

  import(slot: number, parts: readonly HostTensor[]): void {
    this.#check(slot);
    checkStateContent(this.spec, this.tokens, parts);
    const target = this.parts(slot);
    parts.forEach(({ data }, index) => {
      target[index]!.set(data);
    });
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    for (const parts of this.#memory.values()) for (const part of parts) this.#tally.give(part);
    this.#memory.clear();
    this.#gone = true;
  }

  #check(slot: number): void {
    const where = `state ${this.spec.name}`;
    if (this.#gone) throw disposed(where);
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.slots)
      throw invalid(where, `slot must be an integer in 0..${this.slots - 1}`, slot);
  }
}
