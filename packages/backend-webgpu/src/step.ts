import {
  type AttentionLayer,
  checkDraws,
  type DeviceBuffer,
  type Draw,
  type DType,
  elementCount,
  type Named,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
} from '@dsla/spec';
import { disposed, invalid, WebgpuBuffer } from './buffer.js';
import type { Memory, Pool } from './buffers.js';
import { castGroups } from './kernels/cast.js';
import type { Element, Grid } from './kernels/kernel.js';
import { WebgpuLayer, weightKey } from './layer.js';
import { paced } from './pace.js';
import type { Pipeline } from './pipelines.js';
import { type BufferRef, elementBytes, type NamedValue, namedValue, type Program } from './program.js';
import { type Dispatch, dispatchOf, encode, recall, record } from './recording.js';
import type { RopeTables } from './rope.js';
import { WebgpuState } from './state.js';
import { Views } from './view.js';

/** What a step needs of its device. */
export interface StepHost {
  readonly device: GPUDevice;
  readonly type: Element;
  readonly memory: Memory;
  readonly pool: Pool;
  readonly ropes: RopeTables;
  readonly batchLayout: GPUBindGroupLayout;
  /** Kernels that change the element type of a whole buffer, by the new one; where the compute type is not f32. */
  readonly casts?: Readonly<Record<Element, Pipeline>> | undefined;
  readonly noBatch: GPUBindGroup;
  /** Steps that the device has not finished. */
  readonly submitted: Set<Step>;
  /** Kernels that draw tokens, by the key of the logits that they read, and the one that takes them. */
  readonly drawing: ReadonlyMap<NamedValue['key'], Pipeline>;
  readonly taking: Pipeline;
  /** Scratch, shared by all programs: work on the queue is ordered. */
  scratch(slot: number, bytes: number): GPUBuffer;
  /** Zeros, which whoever writes them restores; shared likewise. */
  parts(bytes: number): GPUBuffer;
  /** @throws DslaError when the device is gone */
  check(where: string): void;
}

interface Held extends NamedValue {
  readonly buffer: WebgpuBuffer;
}

/**
 * Most dispatches that go to an idle device at once, and the first: it works on them while the host encodes the next. Every
 * submit costs a device some microseconds, so one that is at work gets a step whole.
 */
const [portion, firstPortion] = [64, 8];

/** Records dispatches; nothing reaches the queue before the submit. */
export class WebgpuStep implements Step {
  readonly #host: StepHost;
  readonly #batch: StepBatch;
  readonly #views: Views;
  readonly #values = new Map<string, Held>();
  readonly #made: WebgpuBuffer[] = [];
  readonly #release: (() => void)[] = [];
  #encoder: GPUCommandEncoder | undefined;
  readonly #dispatches: Dispatch[] = [];
  /** Tokens that were drawn: almost always read at once. */
  #drawn: WebgpuBuffer | undefined;
  /** Of the caller, in place of the batch's. */
  #ids: WebgpuBuffer | undefined;
  #submitted = false;
  #gone = false;

  constructor(host: StepHost, batch: StepBatch, values: Named<DeviceBuffer>) {
    this.#host = host;
    this.#batch = batch;
    this.#views = new Views(host.device, host.batchLayout, host.pool, batch);
    const given = Object.entries(values).map(([name, buffer]) => [name, this.#checked(name, buffer)] as const);
    this.#encoder = host.device.createCommandEncoder();
    host.memory.beginRecording();
    try {
      for (const [name, buffer] of given) {
        if (name === 'ids') this.#ids = buffer;
        else this.#take(name, buffer);
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  run(layer: AttentionLayer, states: Named<StateStore>, rows?: readonly number[]): void {
    if (this.#gone) throw disposed('step');
    if (!this.#encoder) throw invalid('step', 'layers must be run before submit', layer.graph.name);
    this.#host.check('run');
    if (!(layer instanceof WebgpuLayer)) throw invalid('run', 'the layer must be one of this backend', typeof layer);
    const { program, graph } = layer;
    if (layer.disposed) throw disposed(`layer ${graph.name}`);
    const served = this.#served(graph.name, rows);
    this.#checkIds(graph.name, program.vocabulary, rows);
    const stores = this.#storesOf(layer, states, served);
    const bound = this.#bind(graph.name, program);
    const view = this.#views.step(rows);
    const past = program.replays ? this.#views.past(rows) : view;
    const scratch = program.slots.map((slot, index) => {
      const { token, short, row } = view.capacity;
      const chunks = Math.max(view.capacity.chunk, past.capacity.chunk);
      const bytes = Math.max(
        token * slot.token,
        row * slot.row,
        short * slot.short,
        chunks * slot.chunk,
        past.capacity.token * slot.past,
        slot.once,
      );
      return this.#host.scratch(index, bytes);
    });
    const positions = Math.max(view.positions, past.positions);
    const resolve = (ref: BufferRef): GPUBuffer => {
      switch (ref.kind) {
        case 'weight':
          return layer.weights.get(weightKey(ref.name, ref.type))!;
        case 'state':
          return stores.get(ref.state)!.parts[ref.part]!.buffer;
        case 'info':
          return stores.get(ref.state)!.info;
        case 'rope':
          return this.#host.ropes.get(ref.key, ref.rope, positions);
        case 'temp':
          return scratch[program.slotOf.get(ref.temp)!]!;
        case 'parts':
          return this.#host.parts(view.splits * ref.width * 4);
        case 'value':
          return bound.get(ref.value.key)!;
      }
    };
    const buffers = program.refs.map(resolve);
    const recording =
      recall(layer.recordings, view, past, buffers) ??
      record(this.#host.device, layer, { view, past, buffers }, resolve);
    this.#dispatches.push(...recording.dispatches);
  }

  value(name: string): DeviceBuffer {
    if (this.#gone) throw disposed('step');
    const value = this.#values.get(name);
    if (!value)
      throw invalid('step value', `must be one of ${[...this.#values.keys()].join(', ') || '(none yet)'}`, name);
    return value.buffer;
  }

  draw(draws: readonly Draw[]): void {
    if (this.#gone) throw disposed('step');
    if (!this.#encoder) throw invalid('step', 'tokens must be drawn before submit', 'a draw after it');
    const { device, pool, drawing } = this.#host;
    const logits = this.#values.get('logits');
    const pipeline = logits && drawing.get(logits.key);
    if (!logits || !pipeline)
      throw invalid('step draw', 'an earlier run must have written logits of the last tokens', logits);
    const words = wordsOf(draws, this.#batch.rows.length);
    const given = pool.take('draws', words.byteLength);
    this.#release.push(() => pool.give('draws', given));
    device.queue.writeBuffer(given, 0, words);
    const ids = this.#make(namedValue('ids', 1, 'f32', 'row'), 'i32');
    this.#values.set('ids', ids);
    this.#drawn = ids.buffer;
    const entries = [logits.buffer.buffer, given, ids.buffer.buffer];
    const grid: Grid = [draws.length, 1, 1];
    this.#dispatches.push(dispatchOf(device, pipeline, this.#views.step().group, entries, grid));
  }

  async submit(signal?: AbortSignal): Promise<void> {
    if (this.#gone) throw disposed('step');
    throwIfAborted(signal, 'submit');
    if (!this.#encoder) throw invalid('step', 'must be submitted once', 'a second submit');
    const { device, memory, check, submitted } = this.#host;
    check('submit');
    this.#submitted = true;
    let encoder = this.#encoder;
    this.#encoder = undefined;
    const dispatches = [...(this.#ids ? this.#takeIds(this.#ids) : []), ...this.#dispatches];
    let size = submitted.size > 0 ? dispatches.length : firstPortion;
    encode(encoder, dispatches.slice(0, size));
    for (let at = size; at < dispatches.length; at += size) {
      device.queue.submit([encoder.finish()]);
      encoder = device.createCommandEncoder();
      size = Math.min(2 * size, portion);
      encode(encoder, dispatches.slice(at, at + size));
    }
    if (this.#drawn) memory.copy(encoder, this.#drawn.buffer, this.#drawn.bytes);
    device.queue.submit([encoder.finish()]);
    memory.endRecording();
    submitted.add(this);
    await paced(() => device.queue.onSubmittedWorkDone()).finally(() => submitted.delete(this));
    check('submit');
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#encoder = undefined;
    if (!this.#submitted) this.#host.memory.endRecording();
    if (this.#drawn) this.#host.memory.dropCopy(this.#drawn.buffer);
    for (const buffer of this.#made.splice(0).reverse()) buffer[Symbol.dispose]();
    for (const release of this.#release.splice(0)) release();
    this.#views.release();
  }

  /** Buffers of a program's named values by their keys; makes those that it writes first. */
  #bind(layer: string, { inputs, outputs }: Program): Map<NamedValue['key'], GPUBuffer> {
    const byKey = new Map<string, GPUBuffer>();
    for (const input of inputs) {
      const value = this.#values.get(input.name);
      const where = `run ${layer}`;
      if (!value) throw invalid(where, 'an earlier run must have written its value', input.name);
      if (value.width !== input.width)
        throw invalid(where, `value ${input.name} must be ${input.width} wide`, value.width);
      if (value.domain !== input.domain)
        throw invalid(where, `value ${input.name} must have one entry a token`, 'one entry a row');
      byKey.set(input.key, this.#as(input.type, value).buffer.buffer);
    }
    for (const output of outputs) {
      const old = this.#values.get(output.name);
      // A run of some rows leaves the others as they are.
      const alike = old?.width === output.width && old.domain === output.domain;
      const value = alike ? this.#as(output.type, old) : this.#make(output);
      this.#values.set(output.name, value);
      byKey.set(output.key, value.buffer.buffer);
    }
    return byKey;
  }

  /** A value of the step, which gets another type where it does not have this one. */
  #as(type: Element, value: Held): Held {
    if (value.type === type) return value;
    const { device, casts } = this.#host;
    const { name, width, domain } = value;
    const held = this.#make(namedValue(name, width, type, domain));
    this.#values.set(name, held);
    const entries = [value.buffer.buffer, held.buffer.buffer];
    const { group } = this.#views.step();
    if (held.buffer.bytes > 0)
      this.#dispatches.push(dispatchOf(device, casts![type], group, entries, [castGroups, 1, 1]));
    return held;
  }

  /** Before all else: ids on the device into what the kernels read. */
  #takeIds({ buffer }: WebgpuBuffer): Dispatch[] {
    const { device, taking, noBatch } = this.#host;
    return this.#views
      .steps()
      .map((view) => dispatchOf(device, taking, noBatch, [buffer, view.buffer], [Math.ceil(view.tokens / 64), 1, 1]));
  }

  #make(value: NamedValue, dtype: DType = value.type): Held {
    const count = value.domain === 'token' ? this.#batch.ids.length : this.#batch.rows.length;
    const shape = [count, value.width];
    const bytes = elementCount(shape) * elementBytes[value.type];
    const pool = `value ${value.name}`;
    const own = this.#host.pool.take(pool, bytes);
    const buffer = new WebgpuBuffer(pool, dtype, shape, bytes, own, (free) => this.#host.pool.give(pool, free));
    this.#made.push(buffer);
    return { ...value, buffer };
  }

  #checked(name: string, buffer: DeviceBuffer): WebgpuBuffer {
    const where = `beginStep value ${name}`;
    if (!(buffer instanceof WebgpuBuffer)) throw invalid(where, 'must be a buffer of this backend', typeof buffer);
    const { shape, dtype } = buffer;
    const tokens = this.#batch.ids.length;
    if (shape.length !== 2 || shape[0] !== tokens) throw invalid(where, `must be [${tokens}, width]`, shape);
    if (name === 'ids' && (dtype !== 'i32' || shape[1] !== 1)) throw invalid(where, 'must be [tokens, 1] i32', dtype);
    if (name !== 'ids' && dtype !== 'f32' && dtype !== this.#host.type)
      throw invalid(where, `must be f32 or ${this.#host.type}`, dtype);
    buffer.buffer; // throws when disposed
    return buffer;
  }

  /** A copy of a caller's value, which layers may overwrite. */
  #take(name: string, given: WebgpuBuffer): void {
    const value = this.#make(namedValue(name, given.shape[1]!, given.dtype as Element, 'token'));
    this.#values.set(name, value);
    const bytes = Math.ceil(given.bytes / 4) * 4;
    if (bytes > 0) this.#encoder!.copyBufferToBuffer(given.buffer, 0, value.buffer.buffer, 0, bytes);
  }

  #served(layer: string, rows: readonly number[] | undefined): readonly number[] {
    if (!rows) return this.#batch.rows.map((_, index) => index);
    const known = this.#batch.rows.length;
    const wrong = rows.find((row, at) => !Number.isInteger(row) || row < 0 || row >= known || rows.indexOf(row) !== at);
    if (wrong !== undefined) throw invalid(`run ${layer}`, `rows must be different indices in 0..${known - 1}`, rows);
    return rows;
  }

  #checkIds(layer: string, vocabulary: number, rows: readonly number[] | undefined): void {
    if (!Number.isFinite(vocabulary) || this.#ids) return;
    let first = 0;
    this.#batch.rows.forEach(({ count }, row) => {
      const ids = this.#batch.ids.subarray(first, first + count);
      first += count;
      if (rows && !rows.includes(row)) return;
      const wrong = ids.find((id) => id < 0 || id >= vocabulary);
      if (wrong !== undefined)
        throw invalid(`run ${layer} (embed)`, `token ids must be in 0..${vocabulary - 1}`, wrong);
    });
  }

  #storesOf(
    { graph }: WebgpuLayer,
    states: Named<StateStore>,
    served: readonly number[],
  ): ReadonlyMap<string, WebgpuState> {
    const stores = new Map<string, WebgpuState>();
    for (const spec of graph.states) {
      const where = `run ${graph.name} state ${spec.name}`;
      const store = states[spec.name];
      if (!store) throw invalid(where, 'must be among the states given', Object.keys(states));
      if (!(store instanceof WebgpuState)) throw invalid(where, 'must be a store of this backend', typeof store);
      store.check(...served.map((row) => this.#batch.rows[row]!.slot));
      if (!store.fits(spec))
        throw invalid(where, `the store must hold ${JSON.stringify(spec.parts)}`, JSON.stringify(store.spec.parts));
      for (const row of served) {
        const { past, count } = this.#batch.rows[row]!;
        if (past + count > store.capacity)
          throw invalid(
            `${where} row ${row}`,
            `past + count must be at most the capacity ${store.capacity}`,
            past + count,
          );
      }
      stores.set(spec.name, store);
    }
    return stores;
  }
}

/** [rows, 4] as kernels/draw.ts reads them. */
function wordsOf(draws: readonly Draw[], rows: number): Float32Array<ArrayBuffer> {
  checkDraws(draws, rows);
  return Float32Array.from(
    draws.flatMap(({ temperature, topK = 2 ** 31, topP = 1, uniform }) => [temperature, topK, topP, uniform]),
  );
}
