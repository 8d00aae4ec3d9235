import { elementCount, type Weight, type WeightSource } from '@dsla/spec';
import { invalid, type Tally, type Tensor } from './tensor.js';

/** The weights of a device, shared by name among its layers. */
export class WeightPool {
  readonly #tally: Tally;
  readonly #entries = new Map<Weight, { users: number; readonly tensor: Promise<Tensor> }>();

  constructor(tally: Tally) {
    this.#tally = tally;
  }

  async acquire(name: Weight, source: WeightSource): Promise<Tensor> {
    let entry = this.#entries.get(name);
    if (!entry) {
      entry = { users: 0, tensor: this.#read(name, source) };
      this.#entries.set(name, entry);
    }
    entry.users += 1;
    try {
      return await entry.tensor;
    } catch (error) {
      if (this.#entries.get(name) === entry) this.#entries.delete(name);
      throw error;
    }
  }

  release(name: Weight): void {
    const entry = this.#entries.get(name);
    if (!entry) return;
    entry.users -= 1;
    if (entry.users > 0) return;
    this.#entries.delete(name);
    void entry.tensor.then(({ data }) => this.#tally.give(data));
  }

  async #read(name: Weight, source: WeightSource): Promise<Tensor> {
    const { shape, data } = await source.read(name, 'f32');
    if (data.length !== elementCount(shape))
      throw invalid(`weight ${name}`, `must hold [${shape.join(', ')}]`, data.length);
    const own = this.#tally.take(`weight ${name}`, data.length);
    own.set(data);
    return { shape, data: own };
  }
}
