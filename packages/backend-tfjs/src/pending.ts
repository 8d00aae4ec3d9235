import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { TfjsStore } from './state.js';

type Parts = readonly Tensor[] | undefined;

/** New contents of slots that have not reached their stores: a step commits them together, or drops them. */
export class Pending {
  readonly #base: Pending | undefined;
  readonly #slots = new Map<TfjsStore, Map<number, Parts>>();

  /** Reads what is not here from `base`, and then from the store. */
  constructor(base?: Pending) {
    this.#base = base;
  }

  read(store: TfjsStore, slot: number): Parts {
    const slots = this.#slots.get(store);
    if (slots?.has(slot)) return slots.get(slot);
    return this.#base ? this.#base.read(store, slot) : store.parts(slot);
  }

  /** Keeps copies: a part may be an input of the step or a part of an older state. Nothing empties the slot. */
  write(store: TfjsStore, slot: number, parts: Parts): void {
    this.#put(
      store,
      slot,
      parts?.map((part) => tf.keep(tf.clone(part))),
    );
  }

  /** Takes over what another one holds. */
  take(other: Pending): void {
    for (const [store, slots] of other.#slots) for (const [slot, parts] of slots) this.#put(store, slot, parts);
    other.#slots.clear();
  }

  commit(): void {
    try {
      for (const [store, slots] of this.#slots) {
        for (const [slot, parts] of slots) {
          store.put(slot, parts);
          slots.delete(slot);
        }
      }
    } finally {
      this.drop();
    }
  }

  drop(): void {
    for (const slots of this.#slots.values()) for (const parts of slots.values()) tf.dispose([...(parts ?? [])]);
    this.#slots.clear();
  }

  #put(store: TfjsStore, slot: number, parts: Parts): void {
    const slots = this.#slots.get(store) ?? new Map<number, Parts>();
    this.#slots.set(store, slots);
    tf.dispose([...(slots.get(slot) ?? [])]);
    slots.set(slot, parts);
  }
}
