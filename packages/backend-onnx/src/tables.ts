import type { Binding, Memory, Tensor } from './binding/binding.js';
import type { Table } from './lowering.js';
import { packed } from './numbers.js';

/** Tables by position, shared by all layers of a device and all of one length, which doubles when a longer row comes. */
export class Tables {
  readonly #binding: Binding;
  readonly #tables = new Map<string, { readonly memory: Memory; readonly tensor: Tensor }>();
  #positions = 512;

  constructor(binding: Binding) {
    this.#binding = binding;
  }

  /** The table for at least so many positions. Frees a shorter one: within a step all callers must want the same. */
  get(table: Table, positions: number): Tensor {
    while (this.#positions < positions) this.#positions *= 2;
    let entry = this.#tables.get(table.key);
    if (entry?.tensor.dims[0] !== this.#positions) {
      entry?.memory.free();
      entry = this.#make(table);
      this.#tables.set(table.key, entry);
    }
    return entry.tensor;
  }

  #make({ type, width, entry }: Table): { readonly memory: Memory; readonly tensor: Tensor } {
    const positions = this.#positions;
    const data = new Float32Array(positions * width);
    for (let position = 0; position < positions; position++)
      for (let index = 0; index < width; index++) data[position * width + index] = entry(position, index);
    const content = packed(data, type);
    const memory = this.#binding.allocate(content.byteLength, 'table of rotations');
    memory.write(content);
    return { memory, tensor: { memory, offset: 0, type, dims: [positions, width] } };
  }
}
