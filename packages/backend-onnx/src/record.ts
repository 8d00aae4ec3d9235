import {
  bytesPerElement,
  checkDraws,
  type DeviceBuffer,
  type Draw,
  type Named,
  type StateStore,
  type StepBatch,
} from '@dsla/spec';
import type { Memory } from './binding/binding.js';
import { OnnxBuffer } from './buffer.js';
import { invalid } from './errors.js';
import type { OnnxLayer } from './layer.js';
import type { Place } from './places.js';
import type { NamedPools } from './pool.js';
import { Choices, type Served } from './rows.js';
import { OnnxStore } from './state.js';

/** A named value: one vector a token of the batch, or one a row. */
export interface NamedValue {
  readonly place: Place;
  readonly width: number;
  /** Bytes of a vector. */
  readonly stride: number;
  readonly buffer: OnnxBuffer;
  /** Belongs to the caller: read, never written. */
  readonly given: boolean;
}

/** What a layer writes to: a value of the step, which starts as a copy of `from` where not all rows are served. */
export interface Target {
  readonly to: NamedValue;
  readonly from?: NamedValue;
}

/** A row's state as it was when the run was recorded: the parts by served row. */
export interface RecordedState {
  readonly tokens: number;
  readonly store: OnnxStore;
  readonly parts: readonly (readonly Memory[])[];
}

/** A checked run; memory for its values is found when the step computes. */
export interface Recorded {
  readonly layer: OnnxLayer;
  readonly served: Served;
  readonly places: readonly Place[];
  readonly states: Named<RecordedState>;
  /** In the order of the program's inputs. */
  readonly inputs: readonly NamedValue[];
  /** In the order of the program's outputs. */
  readonly outputs: readonly Target[];
  /** Ids that the caller gives instead of the batch's. */
  readonly ids?: NamedValue | undefined;
  /** By row of the batch, where it draws. */
  readonly draws?: readonly Draw[];
}

/** Checks and keeps what a step is to do, and its named values. */
export class Recorder {
  readonly #batch: StepBatch;
  readonly #pools: NamedPools;
  readonly #dtype: 'f32' | 'f16';
  readonly #choices: Choices;
  readonly #values = new Map<string, NamedValue>();
  #ids: NamedValue | undefined;
  /** Those of the caller. */
  readonly given: OnnxBuffer[] = [];
  /** Values that the step makes, in order. */
  readonly made: OnnxBuffer[] = [];

  /** `dtype`: of the values that it makes. */
  constructor(batch: StepBatch, values: Named<DeviceBuffer>, pools: NamedPools, dtype: 'f32' | 'f16') {
    this.#batch = batch;
    this.#pools = pools;
    this.#dtype = dtype;
    this.#choices = new Choices(batch);
    const total = batch.ids.length;
    for (const [name, buffer] of Object.entries(values)) {
      const where = `beginStep value ${name}`;
      if (!(buffer instanceof OnnxBuffer)) throw invalid(where, 'must be a buffer of this backend', typeof buffer);
      buffer.check();
      const [tokens, width] = buffer.shape;
      if (buffer.shape.length !== 2 || tokens !== total)
        throw invalid(where, `must be [${total}, width]`, buffer.shape);
      const stride = width! * bytesPerElement[buffer.dtype];
      const value: NamedValue = { place: 'token', width: width!, stride, buffer, given: true };
      this.#values.set(name, value);
      this.given.push(buffer);
      if (name === 'ids' && buffer.dtype === 'i32') this.#ids = value;
    }
  }

  buffer(name: string): DeviceBuffer {
    const value = this.#values.get(name);
    if (!value)
      throw invalid('step value', `must be one of ${[...this.#values.keys()].join(', ') || '(none yet)'}`, name);
    return value.buffer;
  }

  /** @throws DslaError E_INPUT */
  record(layer: OnnxLayer, stores: Named<StateStore>, only: readonly number[] | undefined): Recorded {
    const { graph, widths, inputs, outputs } = layer.program;
    const served = this.#choices.of(only, graph.name);
    if (!this.#ids) this.#checkIds(layer, served);
    const places = layer.places((input) => this.#values.get(input)?.place ?? 'token');
    return {
      layer,
      served,
      places,
      states: this.#statesOf(layer, stores, served),
      inputs: inputs.map(({ index, name, width }) => this.#input(layer, index, name, width)),
      outputs: outputs.map(({ name, value }) => this.#output(name, places[value]!, widths[value]!, this.#dtype)),
      ids: this.#ids,
    };
  }

  /** Tokens from the logits of the rows. @throws DslaError E_INPUT */
  draw(draws: readonly Draw[], layerFor: (vocabulary: number) => OnnxLayer): Recorded {
    const logits = this.#values.get('logits');
    if (logits?.place !== 'row')
      throw invalid('step draw', 'an earlier run must have written logits of the last tokens', logits?.place);
    checkDraws(draws, this.#batch.rows.length);
    return {
      layer: layerFor(logits.width),
      served: this.#choices.of(undefined, 'draw'),
      places: ['row', 'row'],
      states: {},
      inputs: [logits],
      outputs: [this.#output('ids', 'row', 1, 'i32')],
      draws,
    };
  }

  /** Gives the memory of the values back, in the reverse order of its taking. */
  dispose(): void {
    for (const buffer of [...this.made].reverse()) buffer[Symbol.dispose]();
  }

  #input(layer: OnnxLayer, index: number, name: string, width: number): NamedValue {
    const value = this.#values.get(name);
    if (value?.width === width) return value;
    const where = `${layer.program.graph.name} node ${index} (input)`;
    if (!value) throw invalid(where, 'an earlier run must have written its value', name);
    throw invalid(where, `value ${name} must be ${width} wide`, value.width);
  }

  /** The value to write: the one of that name and shape, or a new one. */
  #output(name: string, place: Place, width: number, dtype: 'f32' | 'f16' | 'i32'): Target {
    const old = this.#values.get(name);
    const same = old?.place === place && old.width === width;
    if (same && !old.given) return { to: old };
    const vectors = place === 'token' ? this.#batch.ids.length : this.#batch.rows.length;
    const stride = width * bytesPerElement[dtype];
    const pool = this.#pools.of(name);
    const giveBack = (memory: Memory): void => pool.giveBack(memory);
    const buffer = new OnnxBuffer(`value ${name}`, dtype, [vectors, width], giveBack, undefined, pool);
    this.made.push(buffer);
    const to: NamedValue = { place, width, stride, buffer, given: false };
    this.#values.set(name, to);
    return same ? { to, from: old } : { to };
  }

  #checkIds({ program }: OnnxLayer, { ids }: Served): void {
    for (const { index, vocabulary } of program.embeddings) {
      const wrong = ids.find((id) => id < 0 || id >= vocabulary);
      if (wrong === undefined) continue;
      throw invalid(`${program.graph.name} node ${index} (embed)`, `token ids must be in 0..${vocabulary - 1}`, wrong);
    }
  }

  #statesOf(layer: OnnxLayer, stores: Named<StateStore>, { rows }: Served): Named<RecordedState> {
    const { graph, folds } = layer.program;
    const states: Record<string, RecordedState> = {};
    for (const spec of graph.states) {
      const store = stores[spec.name];
      const where = (): string => `run ${graph.name} state ${spec.name}`;
      if (!(store instanceof OnnxStore)) throw invalid(where(), 'must be given a store of this backend', typeof store);
      if (!layer.accepts(spec, store))
        throw invalid(
          where(),
          `must be a store made for ${JSON.stringify(spec.parts)}`,
          JSON.stringify(store.spec.parts),
        );
      for (const { index, past, count } of rows) {
        if (past + count <= store.capacity) continue;
        const rule = `past + count must be at most the capacity ${store.capacity}`;
        throw invalid(`${where()} row ${index}`, rule, past + count);
      }
      const parts = rows.map(({ slot }) => store.parts(slot));
      states[spec.name] = { store, tokens: store.tokens, parts };
    }
    for (const { index, from } of folds) {
      const entries = states[from]!.store.spec.parts[0]!.shape[1]!;
      // A ring that has wrapped no longer holds all `past` tokens.
      const lost = rows.find(({ past }) => entries !== 'tokens' && past > entries);
      if (!lost) continue;
      const where = `${graph.name} node ${index} (foldState) row ${lost.index}`;
      throw invalid(where, `the cache must hold all past tokens, at most ${entries}`, lost.past);
    }
    return states;
  }
}
