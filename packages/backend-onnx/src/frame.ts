import type { Named, StepBatch } from '@dsla/spec';
import type { Memory } from './binding/binding.js';
import type { Place } from './places.js';
import type { Pool } from './pool.js';
import type { NamedValue, Recorded } from './record.js';
import { contiguous, type FrameRow } from './rows.js';
import type { OnnxStore } from './state.js';

/** The rows that a run serves, end to end, and where everything lies. */
export interface Frame {
  readonly rows: readonly FrameRow[];
  readonly ids: Int32Array;
  readonly stores: Named<OnnxStore>;
  part(state: string, slot: number, part: number): Memory;
  /** Where a value of the tape lies. */
  storage(value: number): Storage;
}

/** The first token or row of the frame is at `offset`, in bytes. */
export interface Storage {
  readonly memory: Memory;
  readonly offset: number;
  readonly width: number;
  readonly place: Place;
}

/** [from, byte, to, byte, bytes] */
export type Copy = readonly [Memory, number, Memory, number, number];

/** A frame in memory. */
export interface Assigned extends Frame {
  /** Brings together rows that do not lie side by side. */
  readonly before: readonly Copy[];
  /** Puts results where they belong. */
  readonly after: readonly Copy[];
  /** Gives back what the next run may use. */
  release(): void;
}

/** Finds memory for all that a run reads and writes: in the named values themselves where their rows lie side by side. */
export function assign(recorded: Recorded, batch: StepBatch, pool: Pool): Assigned {
  const { layer, rows, places, stores, inputs, outputs } = recorded;
  const { graph, widths } = layer.program;
  const direct = contiguous(rows);
  const all = direct && rows.length === batch.rows.length;
  const tokens = rows.reduce((sum, { count }) => sum + count, 0);
  const storages = new Map<number, Storage>();
  const borrowed: Memory[] = [];
  const moves: (() => void)[] = [];
  const before: Copy[] = [];
  const after: Copy[] = [];

  const borrow = (bytes: number): Memory => pool.borrow(bytes, graph.name);
  const temporary = (place: Place, width: number): Storage => {
    const memory = borrow(4 * width * (place === 'token' ? tokens : rows.length));
    borrowed.push(memory);
    return { memory, offset: 0, width, place };
  };
  const storage = (value: number): Storage => {
    let found = storages.get(value);
    if (!found) {
      found = temporary(places[value]!, widths[value]!);
      storages.set(value, found);
    }
    return found;
  };
  const within = ({ place, width }: NamedValue, memory: Memory): Storage => {
    const offset = 4 * width * (place === 'token' ? (rows[0]?.first ?? 0) : (rows[0]?.index ?? 0));
    return { memory, offset, width, place };
  };

  for (const [index, value] of inputs) {
    if (direct) storages.set(index, within(value, value.buffer.memory));
    else {
      const packed = temporary(value.place, value.width);
      storages.set(index, packed);
      for (const [apart, together, bytes] of pieces(rows, value))
        before.push([value.buffer.memory, apart, packed.memory, together, bytes]);
    }
  }
  const read = new Set(inputs.values());
  for (const [index, { to, from }] of outputs) {
    const node = graph.nodes[index]!;
    const value = (node as Extract<typeof node, { op: 'output' }>).x;
    const fresh = !to.buffer.filled;
    if (fresh) to.buffer.memory = borrow(to.buffer.bytes);
    if (fresh && from && !all) before.push([from.buffer.memory, 0, to.buffer.memory, 0, to.buffer.bytes]);
    const free = direct && !storages.has(value);
    if (free && !read.has(to)) storages.set(value, within(to, to.buffer.memory));
    else if (free && all) {
      // It is read and written: into other memory, which takes its place afterwards.
      const memory = borrow(to.buffer.bytes);
      storages.set(value, within(to, memory));
      moves.push(() => {
        to.buffer.memory = memory;
      });
    } else {
      const { memory, offset } = storage(value);
      for (const [apart, together, bytes] of pieces(rows, to))
        after.push([memory, offset + together, to.buffer.memory, apart, bytes]);
    }
  }
  return {
    rows,
    ids: Int32Array.from(rows.flatMap(({ first, count }) => [...batch.ids.subarray(first, first + count)])),
    stores,
    part: (state, slot, part) => recorded.parts.get(state)!.get(slot)![part]!,
    storage,
    before,
    after,
    release() {
      for (const memory of borrowed.reverse()) pool.giveBack(memory);
      for (const move of moves) move();
    },
  };
}

/** Every row of a value: [byte in the batch, byte in the frame, bytes]. */
function pieces(rows: readonly FrameRow[], { place, width }: NamedValue): [number, number, number][] {
  return rows.map(({ index, first, start, count }, at) =>
    place === 'token'
      ? [4 * width * first, 4 * width * start, 4 * width * count]
      : [4 * width * index, 4 * width * at, 4 * width],
  );
}
