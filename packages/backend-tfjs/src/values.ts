import { type LayerGraph, type Op, operandsOf, type StepBatch } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { invalid } from './memory.js';

/** What a value has one vector of: a token of the batch, or a row. */
export type Place = 'token' | 'row';

/** Nodes that need one vector a token. */
const perToken: ReadonlySet<Op> = new Set([
  'lastToken',
  'softmaxAttention',
  'dualLinearAttention',
  'causalConv',
  'selectiveScan',
]);

/** Place of every value of a tape. @throws DslaError E_INPUT where operands do not fit the node or one another */
export function placesOf(tape: LayerGraph, placeOfInput: (name: string) => Place): readonly Place[] {
  const places: Place[] = [];
  tape.nodes.forEach((node, index) => {
    const where = `${tape.name} node ${index} (${node.op})`;
    const operands = operandsOf(node).map((value) => places[value]!);
    const [first = 'token'] = operands;
    if (operands.some((place) => place !== first))
      throw invalid(where, 'operands must all be per token or all per row', operands);
    if (first === 'row' && perToken.has(node.op)) throw invalid(where, 'operands must be per token', operands);
    places.push(node.op === 'input' ? placeOfInput(node.name) : node.op === 'lastToken' ? 'row' : first);
  });
  return places;
}

/** Where the rows of a batch begin and end in its values. */
export class Rows {
  readonly batch: StepBatch;
  readonly #first: readonly number[];

  constructor(batch: StepBatch) {
    this.batch = batch;
    let total = 0;
    this.#first = batch.rows.map(({ count }) => {
      total += count;
      return total - count;
    });
  }

  get all(): readonly number[] {
    return this.batch.rows.map((_, index) => index);
  }

  ids(served: readonly number[]): Int32Array {
    if (this.#isAll(served)) return this.batch.ids;
    return Int32Array.from(served.flatMap((row) => [...this.batch.ids.subarray(...this.#range(row, 'token'))]));
  }

  /** The vectors of some rows, in their order. */
  gather(x: Tensor, place: Place, served: readonly number[]): Tensor {
    if (this.#isAll(served)) return x;
    return stack(
      served.map((row) => this.#part(x, row, place)),
      x.shape[1]!,
    );
  }

  /** All rows: those of `fresh` for `served`, of `old` (zeros where absent) for the others. */
  scatter(fresh: Tensor, old: Tensor | undefined, place: Place, served: readonly number[]): Tensor {
    if (this.#isAll(served)) return fresh;
    const width = fresh.shape[1]!;
    let at = 0;
    const own = new Map<number, Tensor>();
    for (const row of served) {
      const size = this.#size(row, place);
      own.set(row, tf.slice(fresh, [at, 0], [size, width]));
      at += size;
    }
    const rest = (row: number) => (old ? this.#part(old, row, place) : tf.zeros([this.#size(row, place), width]));
    return stack(
      this.all.map((row) => own.get(row) ?? rest(row)),
      width,
    );
  }

  #part(x: Tensor, row: number, place: Place): Tensor {
    return tf.slice(x, [this.#range(row, place)[0], 0], [this.#size(row, place), x.shape[1]!]);
  }

  #size(row: number, place: Place): number {
    return place === 'token' ? this.batch.rows[row]!.count : 1;
  }

  #range(row: number, place: Place): [from: number, to: number] {
    const first = place === 'token' ? this.#first[row]! : row;
    return [first, first + this.#size(row, place)];
  }

  #isAll(served: readonly number[]): boolean {
    return served.length === this.batch.rows.length && served.every((row, index) => row === index);
  }
}

/** Values on top of each other; rows without tokens give nothing. */
export function stack(pieces: readonly Tensor[], width: number): Tensor {
  const there = pieces.filter(({ size }) => size > 0);
  if (there.length === 0) return tf.zeros([0, width]);
  return there.length > 1 ? tf.concat(there, 0) : there[0]!;
}
