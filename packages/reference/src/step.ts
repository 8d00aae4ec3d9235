import {
  type AttentionLayer,
  checkDraws,
  type DeviceBuffer,
  type Draw,
  type Named,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
} from '@dsla/spec';
import { ReferenceBuffer } from './buffer.js';
import { drawToken } from './draw.js';
import { type Frame, interpret, type Program } from './interpret.js';
import { ReferenceLayer } from './layer.js';
import { type Place, placesOf } from './places.js';
import { ReferenceStore } from './state.js';
import { disposed, invalid, type Tally } from './tensor.js';

/** A named value: one vector a token of the batch, or one a row. `data` outlives the buffer while work is recorded. */
interface NamedValue {
  readonly place: Place;
  readonly width: number;
  readonly buffer: ReferenceBuffer;
  readonly data: Float64Array;
  /** Belongs to the caller: read, never written. */
  readonly given: boolean;
}

/** `run` checks and records; `submit` computes, at once and to the end. */
export class ReferenceStep implements Step {
  readonly #batch: StepBatch;
  /** First token of every row. */
  readonly #first: readonly number[];
  readonly #tally: Tally;
  readonly #values = new Map<string, NamedValue>();
  readonly #made: ReferenceBuffer[] = [];
  /** Of the caller, in place of the batch's; known when computed. */
  #ids: Float64Array | undefined;
  #recorded: (() => void)[] | undefined = [];
  #gone = false;

  constructor(batch: StepBatch, values: Named<DeviceBuffer>, tally: Tally) {
    this.#batch = batch;
    this.#tally = tally;
    let total = 0;
    this.#first = batch.rows.map(({ count }) => {
      total += count;
      return total - count;
    });
    for (const [name, buffer] of Object.entries(values)) {
      const where = `beginStep value ${name}`;
      if (!(buffer instanceof ReferenceBuffer)) throw invalid(where, 'must be a buffer of this backend', typeof buffer);
      const [tokens, width] = buffer.shape;
      if (buffer.shape.length !== 2 || tokens !== total)
        throw invalid(where, `must be [${total}, width]`, buffer.shape);
      if (name === 'ids') {
        if (buffer.dtype !== 'i32' || width !== 1) throw invalid(where, 'must be [tokens, 1] i32', buffer.dtype);
        this.#ids = buffer.data;
        continue;
      }
      if (buffer.dtype !== 'f32') throw invalid(where, 'must be f32', buffer.dtype);
      this.#values.set(name, { place: 'token', width: width!, buffer, data: buffer.data, given: true });
    }
  }

  run(layer: AttentionLayer, states: Named<StateStore>, rows?: readonly number[]): void {
    if (this.#gone) throw disposed('step');
    if (!this.#recorded) throw invalid('step', 'layers must be run before submit', layer.graph.name);
    if (!(layer instanceof ReferenceLayer)) throw invalid('run', 'the layer must be one of this backend', typeof layer);
    const { program } = layer;
    const { name } = program.graph;
    if (layer.disposed) throw disposed(`layer ${name}`);
    const served = this.#served(name, rows);
    if (!this.#ids) this.#checkIds(program, served);
    const places = placesOf(program.graph, (input) => this.#values.get(input)?.place ?? 'token');
    const parts = this.#partsOf(program, states, served);
    const inputs = new Map<string, NamedValue>();
    const outputs = new Map<string, NamedValue>();
    program.graph.nodes.forEach((node, index) => {
      if (node.op === 'input')
        inputs.set(node.name, this.#input(node.name, node.width, `${name} node ${index} (input)`));
      if (node.op === 'output')
        outputs.set(node.name, this.#output(node.name, places[node.x]!, program.widths[node.x]!));
    });
    const ids = (): Int32Array => Int32Array.from(served.flatMap((row) => [...this.#idsOf(row)]));
    const known = this.#ids ? undefined : ids();
    const frame: Frame = {
      ids: () => known ?? ids(),
      rows: served.map((row) => this.#batch.rows[row]!),
      read: (input) => this.#gather(inputs.get(input)!, served),
      write: (output, data) => this.#scatter(outputs.get(output)!, served, data),
      parts: (state, row) => parts.get(state)![row]!,
    };
    this.#recorded.push(() => {
      if (!known) this.#checkIds(program, served);
      interpret(program, frame);
    });
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
    if (!this.#recorded) throw invalid('step', 'tokens must be drawn before submit', 'a draw after it');
    const logits = this.#values.get('logits');
    if (logits?.place !== 'row')
      throw invalid('step draw', 'an earlier run must have written logits of the last tokens', logits);
    checkDraws(draws, this.#batch.rows.length);
    const ids = this.#output('ids', 'row', 1, 'i32');
    this.#recorded.push(() => {
      for (const [row, draw] of draws.entries()) ids.data[row] = drawToken(this.#stretch(logits, row), draw);
    });
  }

  async submit(signal?: AbortSignal): Promise<void> {
    if (this.#gone) throw disposed('step');
    throwIfAborted(signal, 'submit');
    if (!this.#recorded) throw invalid('step', 'must be submitted once', 'a second submit');
    const recorded = this.#recorded;
    this.#recorded = undefined;
    for (const compute of recorded) compute();
    // Timers and signals get their turn between steps.
    await new Promise((resolve) => setImmediate(resolve));
  }

  [Symbol.dispose](): void {
    this.#gone = true;
    this.#recorded = undefined;
    for (const buffer of this.#made) buffer[Symbol.dispose]();
  }

  #served(layer: string, rows: readonly number[] | undefined): readonly number[] {
    if (!rows) return this.#batch.rows.map((_, index) => index);
    const known = this.#batch.rows.length;
    const wrong = rows.find((row, at) => !Number.isInteger(row) || row < 0 || row >= known || rows.indexOf(row) !== at);
    if (wrong !== undefined) throw invalid(`run ${layer}`, `rows must be different indices in 0..${known - 1}`, rows);
    return rows;
  }

  #idsOf(row: number): Int32Array {
    const [from, to] = [this.#first[row]!, this.#first[row]! + this.#batch.rows[row]!.count];
    return this.#ids ? Int32Array.from(this.#ids.subarray(from, to)) : this.#batch.ids.subarray(from, to);
  }

  #checkIds({ graph, weights }: Program, served: readonly number[]): void {
    graph.nodes.forEach((node, index) => {
      if (node.op !== 'embed') return;
      const vocabulary = weights.get(node.table)!.shape[0]!;
      for (const row of served) {
        const wrong = this.#idsOf(row).find((id) => id < 0 || id >= vocabulary);
        if (wrong !== undefined)
          throw invalid(`${graph.name} node ${index} (embed)`, `token ids must be in 0..${vocabulary - 1}`, wrong);
      }
    });
  }

  /** By state: the parts of every served row. */
  #partsOf(
    { graph }: Program,
    states: Named<StateStore>,
    served: readonly number[],
  ): ReadonlyMap<string, readonly (readonly Float64Array[])[]> {
    const parts = new Map<string, readonly (readonly Float64Array[])[]>();
    for (const spec of graph.states) {
      const where = `run ${graph.name} state ${spec.name}`;
      const store = states[spec.name];
      if (!(store instanceof ReferenceStore))
        throw invalid(where, 'must be given a store of this backend', typeof store);
      if (JSON.stringify(store.spec.parts) !== JSON.stringify(spec.parts))
        throw invalid(
          where,
          `must be a store made for ${JSON.stringify(spec.parts)}`,
          JSON.stringify(store.spec.parts),
        );
      for (const row of served) {
        const { past, count } = this.#batch.rows[row]!;
        if (past + count > store.capacity)
          throw invalid(
            `${where} row ${row}`,
            `past + count must be at most the capacity ${store.capacity}`,
            past + count,
          );
      }
      parts.set(
        spec.name,
        served.map((row) => store.parts(this.#batch.rows[row]!.slot)),
      );
    }
    this.#checkFolds(graph.name, graph.nodes, states, served);
    return parts;
  }

  /** A ring that has wrapped no longer holds all `past` tokens. */
  #checkFolds(
    name: string,
    nodes: Program['graph']['nodes'],
    states: Named<StateStore>,
    served: readonly number[],
  ): void {
    nodes.forEach((node, index) => {
      if (node.op !== 'foldState') return;
      const entries = states[node.from]!.spec.parts[0]!.shape[1]!;
      for (const row of served) {
        const { past } = this.#batch.rows[row]!;
        if (entries !== 'tokens' && past > entries)
          throw invalid(
            `${name} node ${index} (foldState) row ${row}`,
            `the cache must hold all past tokens, at most ${entries}`,
            past,
          );
      }
    });
  }

  #input(name: string, width: number, where: string): NamedValue {
    const value = this.#values.get(name);
    if (!value) throw invalid(where, 'an earlier run must have written its value', name);
    if (value.width !== width) throw invalid(where, `value ${name} must be ${width} wide`, value.width);
    return value;
  }

  /** The value to write: the one of that name and shape, or a new one, NaN until written. */
  #output(name: string, place: Place, width: number, dtype: 'f32' | 'i32' = 'f32'): NamedValue {
    const old = this.#values.get(name);
    const same = old?.place === place && old.width === width;
    if (same && !old.given) return old;
    const rows = place === 'token' ? this.#batch.ids.length : this.#batch.rows.length;
    const data = this.#tally.take(`value ${name}`, rows * width).fill(Number.NaN);
    if (same) data.set(old.data);
    const buffer = new ReferenceBuffer(`value ${name}`, [rows, width], data, this.#tally, dtype);
    this.#made.push(buffer);
    const value: NamedValue = { place, width, buffer, data, given: false };
    this.#values.set(name, value);
    return value;
  }

  #gather(value: NamedValue, served: readonly number[]): Float64Array {
    const pieces = served.map((row) => this.#stretch(value, row));
    const out = new Float64Array(pieces.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const piece of pieces) {
      out.set(piece, at);
      at += piece.length;
    }
    return out;
  }

  #scatter(value: NamedValue, served: readonly number[], data: Float64Array): void {
    let at = 0;
    for (const row of served) {
      const target = this.#stretch(value, row);
      target.set(data.subarray(at, at + target.length));
      at += target.length;
    }
  }

  /** What a named value holds of a row. */
  #stretch({ place, width, data }: NamedValue, row: number): Float64Array {
    const [first, count] = place === 'token' ? [this.#first[row]!, this.#batch.rows[row]!.count] : [row, 1];
    return data.subarray(first * width, (first + count) * width);
  }
}
