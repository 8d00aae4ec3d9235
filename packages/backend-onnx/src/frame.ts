import type { Memory } from './binding/binding.js';
import type { Place } from './places.js';
import type { Pool } from './pool.js';
import { elementBytes } from './protobuf.js';
import type { NamedValue, Recorded } from './record.js';
import type { Served } from './rows.js';

/** The first token or row that is served lies at `offset`, in bytes. */
export interface Storage {
  readonly memory: Memory;
  readonly offset: number;
  readonly width: number;
  /** Bytes of a vector. */
  readonly stride: number;
  readonly place: Place;
}

/** [from, byte, to, byte, bytes] */
export type Copy = readonly [Memory, number, Memory, number, number];

/**
 * Memory for all that a run reads and writes: the named values themselves where the served rows lie side by side, temporary
 * memory elsewhere.
 */
export class Frame {
  /** Bring together rows that do not lie side by side. */
  readonly before: Copy[] = [];
  /** Put results where they belong. */
  readonly after: Copy[] = [];
  readonly #recorded: Recorded;
  readonly #pool: Pool;
  readonly #storages = new Map<number, Storage>();
  /** Memory that the run needs while it runs; the same block may serve one value after another. */
  readonly temporary: Set<Memory> = new Set();
  /** What of it is borrowed now. */
  readonly #held = new Set<Memory>();
  /** Blocks of the values that nothing outside the launches reads. */
  readonly #inner = new Map<number, Memory>();
  /** Values that are read and written: memory that takes the place of theirs. */
  readonly #moves: [NamedValue, Memory][] = [];

  /** Blocks of named values that the run leaves for others. */
  readonly left: (readonly [Pool, Memory])[] = [];

  /** `pool`: of temporary memory. */
  constructor(recorded: Recorded, pool: Pool) {
    this.#recorded = recorded;
    this.#pool = pool;
    this.#placeInputs();
    this.#placeOutputs();
  }

  /** Where a value of the tape lies. */
  storage(value: number): Storage {
    let found = this.#storages.get(value);
    if (!found) {
      const { places, layer } = this.#recorded;
      found = this.#temporary(places[value]!, layer.program.widths[value]!);
      this.#storages.set(value, found);
      this.#inner.set(value, found.memory);
    }
    return found;
  }

  /** No later launch reads or writes these values: their blocks may serve others. */
  retire(values: readonly number[]): void {
    for (const value of values) {
      const memory = this.#inner.get(value);
      if (!memory) continue;
      this.#inner.delete(value);
      this.#held.delete(memory);
      this.#pool.giveBack(memory);
    }
  }

  /** Gives back what the next run may use. */
  release(): void {
    for (const memory of [...this.#held].reverse()) this.#pool.giveBack(memory);
    for (const [{ buffer }, memory] of this.#moves) {
      this.left.push([buffer.pool!, buffer.memory]);
      buffer.memory = memory;
    }
  }

  #placeInputs(): void {
    const { layer, inputs, served } = this.#recorded;
    layer.program.inputs.forEach(({ index }, at) => {
      const value = inputs[at]!;
      const { memory } = value.buffer;
      if (served.together) this.#storages.set(index, within(value, memory, served));
      else {
        const packed = this.#temporary(value.place, value.width);
        this.#storages.set(index, packed);
        for (const [apart, together, bytes] of pieces(value, served))
          this.before.push([memory, apart, packed.memory, together, bytes]);
      }
    });
  }

  #placeOutputs(): void {
    const { layer, inputs, outputs, served } = this.#recorded;
    layer.program.outputs.forEach(({ value }, at) => {
      const { to, from } = outputs[at]!;
      const { buffer } = to;
      if (!buffer.filled) {
        buffer.memory = this.#borrow(buffer.pool!, buffer.bytes);
        if (from && !served.all) this.before.push([from.buffer.memory, 0, buffer.memory, 0, buffer.bytes]);
      }
      const free = served.together && !this.#storages.has(value);
      if (free && !inputs.includes(to)) this.#storages.set(value, within(to, buffer.memory, served));
      else if (free && served.all) {
        const memory = this.#borrow(buffer.pool!, buffer.bytes);
        this.#storages.set(value, within(to, memory, served));
        this.#moves.push([to, memory]);
      } else {
        const { memory, offset } = this.storage(value);
        this.#inner.delete(value);
        for (const [apart, together, bytes] of pieces(to, served))
          this.after.push([memory, offset + together, buffer.memory, apart, bytes]);
      }
    });
  }

  #temporary(place: Place, width: number): Storage {
    const { served } = this.#recorded;
    const stride = width * elementBytes[this.#recorded.layer.program.dialect.compute];
    const memory = this.#borrow(this.#pool, stride * (place === 'token' ? served.tokens : served.rows.length));
    this.temporary.add(memory);
    this.#held.add(memory);
    return { memory, offset: 0, width, stride, place };
  }

  #borrow(pool: Pool, bytes: number): Memory {
    return pool.borrow(bytes, this.#recorded.layer.program.graph.name);
  }
}

/** The served stretch of a named value. */
function within({ place, width, stride }: NamedValue, memory: Memory, { rows }: Served): Storage {
  const [first] = rows;
  return { memory, offset: stride * ((place === 'token' ? first?.first : first?.index) ?? 0), width, stride, place };
}

/** Every served row of a value: [byte in the batch, byte among the served, bytes]. */
function pieces({ place, stride }: NamedValue, { rows }: Served): [number, number, number][] {
  return rows.map(({ index, first, start, count }, at) =>
    place === 'token' ? [stride * first, stride * start, stride * count] : [stride * index, stride * at, stride],
  );
}
