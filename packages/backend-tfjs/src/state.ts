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
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { type Engine, use } from './engines.js';
import { bytesOf, disposed, type Holder, invalid } from './memory.js';

/** Tensors by slot. A slot takes memory at its first step; a cache that keeps all tokens is as long as its tokens. */
export class TfjsStore implements StateStore {
  readonly spec: StateSpec;
  readonly slots: number;
  readonly tokens: number;
  readonly #engine: Engine;
  readonly #holder: Holder;
  readonly #parts = new Map<number, readonly Tensor[]>();
  #gone = false;

  constructor(spec: StateSpec, slots: number, tokens: number, engine: Engine, holder: Holder) {
    checkStateSize(spec, slots, tokens);
    this.spec = spec;
    this.slots = slots;
    this.tokens = tokens;
    this.#engine = engine;
    this.#holder = holder;
  }

  /** Longest row, in tokens: Infinity where the state does not grow with them. */
  get capacity(): number {
    return stateCapacity(this.spec, this.tokens);
  }

  get bytes(): number {
    return [...this.#parts.values()].flat().reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  }

  /** What a slot holds; nothing where it was never written. */
  parts(slot: number): readonly Tensor[] | undefined {
    this.#check(slot, 'read');
    return this.#parts.get(slot);
  }

  /** Takes tensors over as the content of a slot; nothing empties it. */
  put(slot: number, parts: readonly Tensor[] | undefined): void {
    this.#check(slot, 'write');
    const old = this.#parts.get(slot);
    if (parts)
      this.#parts.set(
        slot,
        parts.map((part) => this.#holder.keep(part)),
      );
    else this.#parts.delete(slot);
    for (const part of old ?? []) this.#holder.release(part);
  }

  clear(slot: number): void {
    this.put(slot, undefined);
  }

  copy(from: number, to: number): void {
    const parts = this.parts(from);
    this.#check(to, 'copy');
    if (from === to) return;
    use(this.#engine);
    this.put(
      to,
      parts?.map((part) => tf.clone(part)),
    );
  }

  async export(slot: number): Promise<readonly HostTensor[]> {
    this.#check(slot, 'export');
    use(this.#engine);
    const held = this.#parts.get(slot)?.map((part) => tf.clone(part)); // the slot may change meanwhile
    try {
      return await Promise.all(
        this.spec.parts.map(async (part, index) => {
          const shape = partShape(part, this.tokens);
          const tensor = held?.[index];
          return f32(shape, padded(tensor && (await tensor.data<'float32'>()), tensor?.shape ?? [], shape));
        }),
      );
    } finally {
      tf.dispose(held ?? []);
    }
  }

  import(slot: number, parts: readonly HostTensor[]): void {
    this.#check(slot, 'import');
    checkStateContent(this.spec, this.tokens, parts);
    use(this.#engine);
    this.put(
      slot,
      parts.map(({ shape, data }) => tf.tensor(Float32Array.from(data), [...shape], 'float32')),
    );
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    for (const slot of [...this.#parts.keys()]) this.put(slot, undefined);
    this.#gone = true;
  }

  #check(slot: number, what: string): void {
    if (this.#gone) throw disposed(`state ${this.spec.name}`);
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.slots)
      throw invalid(`state ${this.spec.name} ${what}`, `slot must be an integer in 0..${this.slots - 1}`, slot);
  }
}

/** Data of shape `from` in zeros of shape `to`, which may be longer along axis 1. */
function padded(data: Float32Array | undefined, from: readonly number[], to: readonly number[]): Float32Array {
  const all = new Float32Array(elementCount(to));
  if (!data) return all;
  const [held, full] = [elementCount(from.slice(1)), elementCount(to.slice(1))];
  for (let head = 0; head < to[0]!; head++) all.set(data.subarray(head * held, (head + 1) * held), head * full);
  return all;
}
