import {
  elementCount,
  f32,
  type HostTensor,
  type LayerGraph,
  throwIfAborted,
  type Weight,
  type WeightSource,
  weightsOf,
} from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { type Engine, use } from './engines.js';
import { type Holder, invalid } from './memory.js';

/** As the checkpoint has it, or a matrix [out, in] as [in, out]. */
export type Layout = 'plain' | 'transposed';

interface Entry {
  users: number;
  readonly shape: readonly number[];
  /** At least one layout, once loaded. */
  readonly layouts: Map<Layout, Tensor>;
  readonly loaded: Promise<void>;
}

/** The weights of a device, shared by name among its layers, each in the layouts that some layer asked for. */
export class Weights {
  readonly #engine: Engine;
  readonly #holder: Holder;
  readonly #entries = new Map<Weight, Entry>();

  constructor(engine: Engine, holder: Holder) {
    this.#engine = engine;
    this.#holder = holder;
  }

  /** Loads the weights of a tape that are not there yet; all or nothing. Undone by `release`. */
  async acquire(graph: LayerGraph, source: WeightSource, signal: AbortSignal | undefined): Promise<void> {
    const taken: Weight[] = [];
    try {
      for (const [name, layouts] of layoutsOf(graph)) {
        throwIfAborted(signal, `compile ${graph.name}`);
        const entry = this.#entries.get(name) ?? this.#load(name, layouts[0]!, source);
        entry.users += 1;
        taken.push(name);
        await entry.loaded;
        for (const layout of layouts) this.#arrange(entry, layout);
      }
    } catch (error) {
      for (const name of taken) this.#leave(name);
      throw error;
    }
  }

  release(graph: LayerGraph): void {
    for (const name of weightsOf(graph)) this.#leave(name);
  }

  get(name: Weight, layout: Layout): Tensor {
    return this.#entries.get(name)!.layouts.get(layout)!;
  }

  shape(name: Weight): readonly number[] {
    return this.#entries.get(name)!.shape;
  }

  async read(name: Weight): Promise<HostTensor> {
    use(this.#engine);
    const { shape, layouts } = this.#entries.get(name)!;
    const plain = layouts.get('plain');
    const copy = plain ? tf.clone(plain) : tf.transpose(layouts.get('transposed')!);
    try {
      return f32(shape, Float32Array.from(await copy.data()));
    } finally {
      copy.dispose();
    }
  }

  /** @throws DslaError E_INPUT unless a value fits the weight */
  checkValue(name: Weight, { dtype, shape, data }: HostTensor): void {
    const want = this.shape(name);
    if (dtype !== 'f32' || shape.join() !== want.join() || data.length !== elementCount(want))
      throw invalid(`assign ${name}`, `must be f32 [${want.join(', ')}]`, `${dtype} [${shape.join(', ')}]`);
  }

  /** Replaces a checked value for every layer of the device. */
  assign(name: Weight, { shape, data }: HostTensor): void {
    const { layouts } = this.#entries.get(name)!;
    for (const [layout, old] of [...layouts]) {
      layouts.set(layout, this.#make(Float32Array.from(data), shape, layout));
      this.#holder.release(old);
    }
  }

  #load(name: Weight, layout: Layout, source: WeightSource): Entry {
    const layouts = new Map<Layout, Tensor>();
    const load = async (): Promise<void> => {
      const { shape, data } = await source.read(name, 'f32');
      if (data.length !== elementCount(shape))
        throw invalid(`weight ${name}`, `must hold [${shape.join(', ')}]`, data.length);
      if (this.#entries.get(name) !== entry) return; // given up meanwhile
      layouts.set(layout, this.#make(Float32Array.from(data), shape, layout));
    };
    const entry: Entry = { users: 0, shape: source.spec(name).shape, layouts, loaded: load() };
    entry.loaded.catch(() => {}); // reported to whoever waits for it
    this.#entries.set(name, entry);
    return entry;
  }

  #make(data: Float32Array, shape: readonly number[], layout: Layout): Tensor {
    use(this.#engine);
    return this.#holder.keep(
      tf.tidy(() => {
        const plain = tf.tensor(data, [...shape]);
        return layout === 'plain' ? plain : tf.transpose(plain);
      }),
    );
  }

  #arrange({ layouts }: Entry, layout: Layout): void {
    if (layouts.has(layout)) return;
    use(this.#engine);
    const [other] = layouts.values();
    layouts.set(layout, this.#holder.keep(tf.transpose(other!)));
  }

  #leave(name: Weight): void {
    const entry = this.#entries.get(name)!;
    entry.users -= 1;
    if (entry.users > 0) return;
    this.#entries.delete(name);
    for (const tensor of entry.layouts.values()) this.#holder.release(tensor);
  }
}

/** In which layouts a tape reads its weights. */
function layoutsOf(graph: LayerGraph): ReadonlyMap<Weight, readonly Layout[]> {
  const found = new Map<Weight, Set<Layout>>();
  for (const node of graph.nodes) {
    const matrix = node.op === 'linear' ? node.weight : node.op === 'foldState' ? node.gateWeight : undefined;
    for (const name of weightsOf({ ...graph, nodes: [node] })) {
      const layouts = found.get(name) ?? new Set();
      found.set(name, layouts.add(name === matrix ? 'transposed' : 'plain'));
    }
  }
  return new Map([...found].map(([name, layouts]) => [name, [...layouts]]));
}
