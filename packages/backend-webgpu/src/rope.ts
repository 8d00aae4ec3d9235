import type { Rope } from '@dsla/spec';
import type { Memory } from './buffers.js';

/**
 * Cosine and sine of position * frequency, [positions, rotaryDim/2, 2], computed on the host in float64 (angles computed in
 * WGSL cost two decimal places). One table a device and rope; it grows by doubling.
 */
export class RopeTables implements Disposable {
  readonly #device: GPUDevice;
  readonly #memory: Memory;
  readonly #tables = new Map<string, { buffer: GPUBuffer; positions: number }>();

  constructor(device: GPUDevice, memory: Memory) {
    this.#device = device;
    this.#memory = memory;
  }

  get(key: string, rope: Rope, positions: number): GPUBuffer {
    const known = this.#tables.get(key);
    if (known && known.positions >= positions) return known.buffer;
    const grown = 2 ** Math.ceil(Math.log2(Math.max(positions, 256)));
    const table = ropeTable(rope, grown);
    const buffer = this.#memory.take('rope table', table.byteLength);
    this.#device.queue.writeBuffer(buffer, 0, table);
    if (known) this.#memory.give(known.buffer);
    this.#tables.set(key, { buffer, positions: grown });
    return buffer;
  }

  idle(): { buffers: number; bytes: number } {
    const all = [...this.#tables.values()];
    return { buffers: all.length, bytes: all.reduce((sum, { buffer }) => sum + buffer.size, 0) };
  }

  [Symbol.dispose](): void {
    for (const { buffer } of this.#tables.values()) this.#memory.give(buffer);
    this.#tables.clear();
  }
}

function ropeTable({ frequencies, rotaryDim }: Rope, positions: number): Float32Array<ArrayBuffer> {
  const half = rotaryDim / 2;
  const table = new Float32Array(positions * rotaryDim);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < half; i++) {
      const angle = position * frequencies[i]!;
      table[(position * half + i) * 2] = Math.cos(angle);
      table[(position * half + i) * 2 + 1] = Math.sin(angle);
    }
  }
  return table;
}
