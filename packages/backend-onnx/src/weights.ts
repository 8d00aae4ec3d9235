import { DslaError, elementCount, type Weight, type WeightSource } from '@dsla/spec';
import type { Memory, Tensor } from './binding/binding.js';
import type { Derivation } from './lowering.js';
import type { Pool } from './pool.js';

/** The weights of a device, each held once and shared by name among its layers. */
export class WeightTable {
  readonly #pool: Pool;
  readonly #entries = new Map<string, { users: number; readonly tensor: Promise<Tensor> }>();

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  /** A layer's claim on a weight. */
  async acquire(weight: Weight, derivation: Derivation | undefined, source: WeightSource): Promise<WeightClaim> {
    const key = derivation ? `${weight} ${derivation.name}` : weight;
    let entry = this.#entries.get(key);
    if (!entry) {
      entry = { users: 0, tensor: this.#read(weight, derivation, source) };
      this.#entries.set(key, entry);
    }
    const claimed = entry;
    claimed.users += 1;
    try {
      const tensor = await claimed.tensor;
      return { tensor, release: () => this.#release(key, claimed, tensor.memory) };
    } catch (error) {
      if (this.#entries.get(key) === claimed) this.#entries.delete(key);
      throw error;
    }
  }

  #release(key: string, entry: { users: number }, memory: Memory): void {
    entry.users -= 1;
    if (entry.users > 0) return;
    this.#entries.delete(key);
    this.#pool.give(memory);
  }

  async #read(weight: Weight, derivation: Derivation | undefined, source: WeightSource): Promise<Tensor> {
    const host = await source.read(weight, 'f32');
    if (!(host.data instanceof Float32Array) || host.data.length !== elementCount(host.shape))
      throw new DslaError('E_INPUT', {
        where: `weight ${weight}`,
        rule: `must be f32 with the length of [${host.shape.join(', ')}]`,
        got: `${host.dtype}, ${host.data.length}`,
      });
    const dims = derivation ? derivation.shape(host.shape) : host.shape;
    const data = derivation ? derivation.apply(host.data, host.shape) : host.data;
    const memory = this.#pool.take(data.byteLength, `weight ${weight}`);
    new Float32Array(memory.buffer, 0, data.length).set(data);
    return { memory, offset: 0, type: 'float', dims };
  }
}

export interface WeightClaim {
  readonly tensor: Tensor;
  release(): void;
}
