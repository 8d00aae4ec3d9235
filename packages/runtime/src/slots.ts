import type { Plan } from '@dsla/models';
import { DslaError, type Named, type StateStore } from '@dsla/spec';

/** A text in progress: one slot of every state. Disposing it clears the slot and gives it back. */
export interface Sequence extends Disposable {
  readonly slot: number;
  /** Tokens in the states. */
  readonly past: number;
  /** Mixer of every convertible layer. */
  readonly plan: Plan;
}

/** A sequence as its model sees it. */
export interface OwnSequence extends Sequence {
  past: number;
  plan: Plan;
  open: boolean;
}

/** The slots of a model's states, and who has them. */
export class Slots {
  readonly #states: Named<StateStore>;
  readonly #count: number;
  readonly #free: number[];
  readonly #taken = new Set<OwnSequence>();

  constructor(states: Named<StateStore>, count: number) {
    this.#states = states;
    this.#count = count;
    this.#free = Array.from({ length: count }, (_, index) => count - 1 - index);
  }

  /** @throws DslaError E_INPUT when no slot is free */
  take(plan: Plan): OwnSequence {
    const slot = this.#free.pop();
    if (slot === undefined) {
      throw new DslaError('E_INPUT', {
        where: 'model.open',
        rule: `one of the ${this.#count} slots must be free`,
        got: 'none',
        cure: 'Dispose a sequence, or load the model with more slots.',
      });
    }
    const sequence: OwnSequence = {
      slot,
      past: 0,
      plan: [...plan],
      open: true,
      [Symbol.dispose]: () => this.#give(sequence),
    };
    this.#taken.add(sequence);
    return sequence;
  }

  fork(from: OwnSequence): OwnSequence {
    const to = this.take(from.plan);
    for (const store of Object.values(this.#states)) store.copy(from.slot, to.slot);
    to.past = from.past;
    return to;
  }

  /** @throws DslaError E_DISPOSED when the sequence was closed, or is one of another model */
  own(sequence: Sequence): OwnSequence {
    if ((this.#taken as ReadonlySet<Sequence>).has(sequence)) return sequence as OwnSequence;
    throw closed(sequence);
  }

  /** Empties sequences whose states may be half-written; closed ones are left alone. Returns their slots. */
  clear(sequences: readonly OwnSequence[]): number[] {
    const open = sequences.filter((sequence) => sequence.open);
    for (const sequence of open) {
      sequence.past = 0;
      this.#erase(sequence.slot);
    }
    return open.map(({ slot }) => slot);
  }

  /** From now on no sequence is open. */
  close(): void {
    for (const sequence of this.#taken) sequence.open = false;
    this.#taken.clear();
  }

  #give(sequence: OwnSequence): void {
    if (!this.#taken.delete(sequence)) return;
    sequence.open = false;
    this.#erase(sequence.slot);
    this.#free.push(sequence.slot);
  }

  #erase(slot: number): void {
    for (const store of Object.values(this.#states)) store.clear(slot);
  }
}

/** Use of a sequence after its end. */
export function closed({ slot }: Sequence): DslaError {
  return new DslaError('E_DISPOSED', {
    where: `sequence of slot ${slot}`,
    rule: 'it must be open on this model',
    got: 'a closed one',
    cure: 'Open a new one.',
  });
}
