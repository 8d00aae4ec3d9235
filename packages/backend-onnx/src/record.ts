import type { DeviceBuffer, Named, StateStore, StepBatch } from '@dsla/spec';
import type { Memory } from './binding/binding.js';
import { OnnxBuffer } from './buffer.js';
import { invalid } from './errors.js';
import type { OnnxLayer } from './layer.js';
import { type Place, placesOf } from './places.js';
import type { Pool } from './pool.js';
import { type FrameRow, framed } from './rows.js';
import { OnnxStore } from './state.js';

/** A named value: one vector a token of the batch, or one a row. */
export interface NamedValue {
  readonly place: Place;
  readonly width: number;
  readonly buffer: OnnxBuffer;
  /** Belongs to the caller: read, never written. */
  readonly given: boolean;
}

/** What a layer writes to: a value of the step, which starts as a copy of `from` where not all rows are served. */
export interface Target {
  readonly to: NamedValue;
  readonly from?: NamedValue;
}

/** A checked run; memory is found when the step computes. */
export interface Recorded {
  readonly layer: OnnxLayer;
  readonly rows: readonly FrameRow[];
  readonly places: readonly Place[];
  readonly stores: Named<OnnxStore>;
  /** By state and slot: the parts as they were when the run was recorded. */
  readonly parts: ReadonlyMap<string, ReadonlyMap<number, readonly Memory[]>>;
  /** By node of op input. */
  readonly inputs: ReadonlyMap<number, NamedValue>;
  /** By node of op output. */
  readonly outputs: ReadonlyMap<number, Target>;
}

/** The named values of a step. */
export class Recorder {
  readonly #batch: StepBatch;
  readonly #pool: Pool;
  readonly #values = new Map<string, NamedValue>();
  readonly #made: OnnxBuffer[] = [];

  constructor(batch: StepBatch, values: Named<DeviceBuffer>, pool: Pool) {
    this.#batch = batch;
    this.#pool = pool;
    const total = batch.ids.length;
    for (const [name, buffer] of Object.entries(values)) {
      const where = `beginStep value ${name}`;
      if (!(buffer instanceof OnnxBuffer)) throw invalid(where, 'must be a buffer of this backend', typeof buffer);
      buffer.check();
      const [tokens, width] = buffer.shape;
      if (buffer.shape.length !== 2 || tokens !== total)
        throw invalid(where, `must be [${total}, width]`, buffer.shape);
      this.#values.set(name, { place: 'token', width: width!, buffer, given: true });
    }
  }

  buffer(name: string): DeviceBuffer {
    const value = this.#values.get(name);
    if (!value)
      throw invalid('step value', `must be one of ${[...this.#values.keys()].join(', ') || '(none yet)'}`, name);
    return value.buffer;
  }

  /** @throws DslaError E_INPUT */
  record(layer: OnnxLayer, states: Named<StateStore>, only: readonly number[] | undefined): Recorded {
    const { graph, widths } = layer.program;
    const rows = framed(this.#batch, graph.name, only);
    this.#checkIds(layer, rows);
    const places = placesOf(layer.program, (input) => this.#values.get(input)?.place ?? 'token');
    const stores = this.#storesOf(layer, states, rows);
    const inputs = new Map<number, NamedValue>();
    const outputs = new Map<number, Target>();
    graph.nodes.forEach((node, index) => {
      const where = `${graph.name} node ${index} (${node.op})`;
      if (node.op === 'input') inputs.set(index, this.#input(node.name, node.width, where));
      if (node.op === 'output') outputs.set(index, this.#output(node.name, places[node.x]!, widths[node.x]!));
    });
    const parts = new Map(
      Object.entries(stores).map(([state, store]) => [
        state,
        new Map(rows.map(({ slot }) => [slot, store.parts(slot)] as const)),
      ]),
    );
    return { layer, rows, places, stores, parts, inputs, outputs };
  }

  /** Gives the memory of the values back, in the reverse order of its taking. */
  dispose(): void {
    for (const buffer of this.#made.reverse()) buffer[Symbol.dispose]();
  }

  #input(name: string, width: number, where: string): NamedValue {
    const value = this.#values.get(name);
    if (!value) throw invalid(where, 'an earlier run must have written its value', name);
    if (value.width !== width) throw invalid(where, `value ${name} must be ${width} wide`, value.width);
    return value;
  }

  /** The value to write: the one of that name and shape, or a new one. */
  #output(name: string, place: Place, width: number): Target {
    const old = this.#values.get(name);
    const same = old?.place === place && old.width === width;
    if (same && !old.given) return { to: old };
    const shape = [place === 'token' ? this.#batch.ids.length : this.#batch.rows.length, width];
    const buffer = new OnnxBuffer(`value ${name}`, shape, (memory) => this.#pool.giveBack(memory));
    this.#made.push(buffer);
    const to: NamedValue = { place, width, buffer, given: false };
    this.#values.set(name, to);
    return same ? { to, from: old } : { to };
  }

  #checkIds({ program }: OnnxLayer, rows: readonly FrameRow[]): void {
    program.graph.nodes.forEach((node, index) => {
      if (node.op !== 'embed') return;
      const vocabulary = program.shapeOf(node.table)[0]!;
      for (const { first, count } of rows) {
        const wrong = this.#batch.ids.subarray(first, first + count).find((id) => id < 0 || id >= vocabulary);
        if (wrong === undefined) continue;
        const where = `${program.graph.name} node ${index} (embed)`;
        throw invalid(where, `token ids must be in 0..${vocabulary - 1}`, wrong);
      }
    });
  }

  #storesOf({ program: { graph } }: OnnxLayer, states: Named<StateStore>, rows: readonly FrameRow[]): Named<OnnxStore> {
    const stores: Record<string, OnnxStore> = {};
    for (const spec of graph.states) {
      const where = `run ${graph.name} state ${spec.name}`;
      const store = states[spec.name];
      if (!(store instanceof OnnxStore)) throw invalid(where, 'must be given a store of this backend', typeof store);
      const [want, got] = [JSON.stringify(spec.parts), JSON.stringify(store.spec.parts)];
      if (want !== got) throw invalid(where, `must be a store made for ${want}`, got);
      for (const { index, past, count } of rows) {
        if (past + count > store.capacity)
          throw invalid(
            `${where} row ${index}`,
            `past + count must be at most the capacity ${store.capacity}`,
            past + count,
          );
      }
      stores[spec.name] = store;
    }
    for (const [index, node] of graph.nodes.entries()) {
      if (node.op !== 'foldState') continue;
      const entries = stores[node.from]!.spec.parts[0]!.shape[1]!;
      for (const { index: row, past } of rows) {
        // A ring that has wrapped no longer holds all `past` tokens.
        if (entries !== 'tokens' && past > entries)
          throw invalid(
            `${graph.name} node ${index} (foldState) row ${row}`,
            `the cache must hold all past tokens, at most ${entries}`,
            past,
          );
      }
    }
    return stores;
  }
}
