import type { Binding, Memory, Tensor } from './binding/binding.js';
import type { Table } from './lowering.js';

/** Tables by position, shared by all layers of a device; they double when a longer row comes. */
export class Tables {
  /** Longest row that all of them serve, in tokens. */
  positions = 0;
  readonly #binding: Binding;
  readonly #tables = new Map<string, { readonly memory: Memory; readonly positions: number }>();

  constructor(binding: Binding) {
    this.#binding = binding;
  }

  /** The table for at least so many positions. Frees a shorter one: within a step all callers must want the same. */
  get(table: Table, positions: number): Tensor {
    let entry = this.#tables.get(table.key);
    if (!entry || entry.positions < positions) {
      entry?.memory.free();
      entry = this.#make(table, 2 ** Math.ceil(Math.log2(Math.max(positions, 512))));
      this.#tables.set(table.key, entry);
      this.positions = Math.min(...Array.from(this.#tables.values(), (each) => each.positions));
    }
    return { memory: entry.memory, offset: 0, type: 'float', dims: [entry.positions, table.width] };
  }

  #make({ width, entry }: Table, positions: number): { readonly memory: Memory; readonly positions: number } {
    const memory = this.#binding.allocate(4 * positions * width, 'table of rotations');
    const data = new Float32Array(positions * width);
    for (let position = 0; position < positions; position++)
      for (let index = 0; index < width; index++) data[position * width + index] = entry(position, index);
    memory.write(data);
    return { memory, positions };
  }
}
