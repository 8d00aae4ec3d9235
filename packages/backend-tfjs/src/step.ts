import {
  type AttentionLayer,
  type DeviceBuffer,
  type Named,
  type Row,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
} from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { TfjsBuffer, tensorOf } from './buffer.js';
import { type Engine, use } from './engines.js';
import type { Frame } from './frame.js';
import { TfjsLayer } from './layer.js';
import { disposed, type Holder, invalid } from './memory.js';
import { Pending } from './pending.js';
import { runTape } from './run.js';
import { TfjsStore } from './state.js';
import { type Place, placesOf, Rows } from './values.js';

interface NamedValue {
  readonly place: Place;
  readonly buffer: DeviceBuffer;
}

/** What all steps of a device share. */
export interface Bench {
  readonly engine: Engine;
  readonly holder: Holder;
  readonly frame: Omit<Frame, 'ids' | 'counts'>;
}

/** Computes in `run`; the states change in `submit`, all of them or none. */
export class TfjsStep implements Step {
  readonly #rows: Rows;
  readonly #bench: Bench;
  readonly #values = new Map<string, NamedValue>();
  readonly #made = new Set<TfjsBuffer>();
  readonly #pending = new Pending();
  #phase: 'open' | 'submitted' | 'gone' = 'open';

  constructor(batch: StepBatch, values: Named<DeviceBuffer>, bench: Bench) {
    this.#rows = new Rows(batch);
    this.#bench = bench;
    for (const [name, buffer] of Object.entries(values)) {
      const where = `beginStep value ${name}`;
      const { shape } = tensorOf(buffer, where);
      if (shape.length !== 2 || shape[0] !== batch.ids.length)
        throw invalid(where, `must be [${batch.ids.length}, width]`, shape);
      this.#values.set(name, { place: 'token', buffer });
    }
  }

  run(layer: AttentionLayer, states: Named<StateStore>, rows?: readonly number[]): void {
    this.#checkPhase();
    if (!(layer instanceof TfjsLayer)) throw invalid('run', 'the layer must be one of this backend', typeof layer);
    layer.check();
    const { tape, widths } = layer;
    const served = this.#served(tape.name, rows);
    const batch = served.map((row) => this.#rows.batch.rows[row]!);
    const ids = this.#rows.ids(served);
    this.#checkInputs(layer);
    this.#checkIds(layer, ids);
    const places = placesOf(tape, (name) => this.#values.get(name)!.place);
    const stores = this.#stores(layer, states, batch);
    const outputs = tape.nodes.filter((node) => node.op === 'output');

    use(this.#bench.engine);
    const fresh = new Pending(this.#pending);
    let computed: Tensor[];
    try {
      computed = tf.tidy(() => {
        const frame = { ...this.#bench.frame, ids, counts: batch.map(({ count }) => count) };
        const read = (name: string) => {
          const { buffer, place } = this.#values.get(name)!;
          return this.#rows.gather(tensorOf(buffer, name), place, served);
        };
        const found = runTape(tape, batch, frame, read, {
          capacity: (state) => stores.get(state)!.capacity,
          read: (state, row) => fresh.read(stores.get(state)!, batch[row]!.slot),
          write: (state, row, parts) => fresh.write(stores.get(state)!, batch[row]!.slot, parts),
        });
        return outputs.map(({ name, x }) => {
          const old = this.#own(name, places[x]!, widths[x]!);
          return tf.clone(this.#rows.scatter(found[name]!, old, places[x]!, served)); // an output may be an input
        });
      });
    } catch (error) {
      fresh.drop();
      throw error;
    }
    this.#pending.take(fresh);
    outputs.forEach(({ name, x }, index) => {
      this.#replace(name, places[x]!, computed[index]!);
    });
  }

  value(name: string): DeviceBuffer {
    if (this.#phase === 'gone') throw disposed('step');
    const value = this.#values.get(name);
    if (value) return value.buffer;
    throw invalid('step value', `must be one of ${[...this.#values.keys()].join(', ') || '(none yet)'}`, name);
  }

  async submit(signal?: AbortSignal): Promise<void> {
    this.#checkPhase();
    throwIfAborted(signal, 'submit');
    this.#phase = 'submitted';
    this.#pending.commit();
  }

  [Symbol.dispose](): void {
    this.#phase = 'gone';
    this.#pending.drop();
    for (const buffer of this.#made) buffer[Symbol.dispose]();
    this.#made.clear();
  }

  /** The tensor of a value that a run may write part of; nothing if it was never written in this shape. */
  #own(name: string, place: Place, width: number): Tensor | undefined {
    const value = this.#values.get(name);
    if (value?.place !== place) return undefined;
    const tensor = tensorOf(value.buffer, name);
    return tensor.shape[1] === width ? tensor : undefined;
  }

  #replace(name: string, place: Place, tensor: Tensor): void {
    const old = this.#values.get(name);
    const { buffer } = old ?? {};
    const same = old?.place === place && buffer?.shape[1] === tensor.shape[1];
    if (same && buffer instanceof TfjsBuffer && this.#made.has(buffer)) {
      buffer.replace(tensor);
      return;
    }
    const made = new TfjsBuffer(`value ${name}`, tensor, this.#bench.holder);
    this.#made.add(made);
    this.#values.set(name, { place, buffer: made });
  }

  #checkPhase(): void {
    if (this.#phase === 'gone') throw disposed('step');
    if (this.#phase === 'submitted') throw invalid('step', 'must not be used again after submit', 'a second use');
  }

  #served(layer: string, rows: readonly number[] | undefined): readonly number[] {
    if (!rows) return this.#rows.all;
    const known = this.#rows.all.length;
    const wrong = rows.find((row, at) => !Number.isInteger(row) || row < 0 || row >= known || rows.indexOf(row) !== at);
    if (wrong === undefined && rows.length > 0) return rows;
    throw invalid(`run ${layer}`, `rows must be different indices in 0..${known - 1}`, rows);
  }

  #checkInputs({ tape }: TfjsLayer): void {
    tape.nodes.forEach((node, index) => {
      if (node.op !== 'input') return;
      const where = `${tape.name} node ${index} (input)`;
      const value = this.#values.get(node.name);
      if (!value) throw invalid(where, 'an earlier run must have written its value', node.name);
      const { shape } = tensorOf(value.buffer, where);
      if (shape[1] !== node.width) throw invalid(where, `value ${node.name} must be ${node.width} wide`, shape[1]);
    });
  }

  #checkIds({ tape }: TfjsLayer, ids: Int32Array): void {
    tape.nodes.forEach((node, index) => {
      if (node.op === 'embed')
        checkIds(ids, this.#bench.frame.weight(node.table).shape[0]!, `${tape.name} node ${index} (embed)`);
    });
  }

  #stores({ tape }: TfjsLayer, states: Named<StateStore>, batch: readonly Row[]): ReadonlyMap<string, TfjsStore> {
    return new Map(
      tape.states.map((spec) => {
        const where = `run ${tape.name} state ${spec.name}`;
        const store = states[spec.name];
        if (!(store instanceof TfjsStore)) throw invalid(where, 'must be given a store of this backend', typeof store);
        const [want, got] = [JSON.stringify(spec.parts), JSON.stringify(store.spec.parts)];
        if (want !== got) throw invalid(where, `must be a store made for ${want}`, got);
        for (const { slot, past, count } of batch) {
          store.parts(slot); // that there is such a slot
          if (past + count > store.capacity)
            throw invalid(where, `past + count must be at most the capacity ${store.capacity}`, past + count);
        }
        return [spec.name, store];
      }),
    );
  }
}

/** @throws DslaError E_INPUT */
export function checkIds(ids: Int32Array, vocabulary: number, where: string): void {
  const wrong = ids.find((id) => id < 0 || id >= vocabulary);
  if (wrong !== undefined) throw invalid(where, `token ids must be in 0..${vocabulary - 1}`, wrong);
}
