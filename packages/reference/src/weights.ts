import { DslaError, elementCount, type Weight, type WeightSource } from '@dsla/spec';
import type { Tally, Tensor } from './tensor.js';

interface Entry {
  /** Layers that hold it or wait for it. */
  users: number;
  readonly loading: Promise<Tensor>;
  tensor?: Tensor;
}

/** The weights of a device, shared by name among its layers. */
export class WeightPool {
  readonly #tally: Tally;
  readonly #entries = new Map<Weight, Entry>();

  constructor(tally: Tally) {
    this.#tally = tally;
  }

  /** @throws DslaError E_CONFIG when the name is held already with another shape, or the source breaks its promise. */
  async acquire(name: Weight, source: WeightSource): Promise<Tensor> {
    let entry = this.#entries.get(name);
    if (!entry) {
      entry = { users: 0, loading: this.#read(name, source) };
      this.#entries.set(name, entry);
    }
    entry.users += 1;
    try {
      entry.tensor = await entry.loading;
      checkShape(name, entry.tensor.shape, source);
      return entry.tensor;
    } catch (error) {
      this.release(name);
      throw error;
    }
  }

  release(name: Weight): void {
    const entry = this.#entries.get(name);
    if (!entry) return;
    entry.users -= 1;
    if (entry.users > 0) return;
    this.#entries.delete(name);
    if (entry.tensor) this.#tally.give(entry.tensor.data);
  }

  async #read(name: Weight, source: WeightSource): Promise<Tensor> {
    const { shape, data } = await source.read(name, 'f32');
    checkShape(name, shape, source);
    const own = this.#tally.take(`weight ${name}`, elementCount(shape));
    own.set(data);
    return { shape, data: own };
  }
}

/** One name means one weight. */
function checkShape(name: Weight, shape: readonly number[], source: WeightSource): void {
  const want = source.spec(name).shape;
  if (want.join() === shape.join()) return;
  throw new DslaError('E_CONFIG', {
    where: `weight ${name}`,
    rule: `must have one shape on a device, [${want.join(', ')}]`,
    got: shape,
    cure: 'Give weights of different models different names, or open a device for each.',
  });
}
