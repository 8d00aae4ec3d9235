import type { Row, StepBatch } from '@dsla/spec';
import { invalid } from './errors.js';

/** A row that a run serves. */
export interface ServedRow extends Row {
  /** Index in the batch. */
  readonly index: number;
  /** First token in the batch. */
  readonly first: number;
  /** First token among those served. */
  readonly start: number;
}

/** The rows that a run serves, end to end. */
export interface Served {
  /** Tells them from other choices of the same batch. */
  readonly key: string;
  readonly rows: readonly ServedRow[];
  readonly tokens: number;
  readonly ids: Int32Array;
  /** They are a stretch of the batch. */
  readonly together: boolean;
  /** They are the batch. */
  readonly all: boolean;
}

/** Choices of rows of one batch, each worked out once. */
export class Choices {
  readonly #batch: StepBatch;
  /** First token of every row. */
  readonly #first: readonly number[];
  readonly #served = new Map<string, Served>();

  constructor(batch: StepBatch) {
    this.#batch = batch;
    let total = 0;
    this.#first = batch.rows.map(({ count }) => {
      total += count;
      return total - count;
    });
  }

  /** @throws DslaError E_INPUT */
  of(only: readonly number[] | undefined, layer: string): Served {
    const key = only ? only.join() : 'all';
    let served = this.#served.get(key);
    if (!served) {
      served = this.#serve(only ?? this.#first.map((_, index) => index), layer, key);
      this.#served.set(key, served);
    }
    return served;
  }

  #serve(indices: readonly number[], layer: string, key: string): Served {
    const { rows: known, ids } = this.#batch;
    const wrong = indices.some(
      (row, at) => !Number.isInteger(row) || row < 0 || row >= known.length || indices.indexOf(row) !== at,
    );
    if (wrong) throw invalid(`run ${layer}`, `rows must be different indices in 0..${known.length - 1}`, indices);
    let tokens = 0;
    const rows = indices.map((index): ServedRow => {
      const row = known[index]!;
      tokens += row.count;
      return { ...row, index, first: this.#first[index]!, start: tokens - row.count };
    });
    const together = indices.every((index, at) => index === indices[0]! + at);
    const own = new Int32Array(tokens);
    for (const { first, start, count } of rows) own.set(ids.subarray(first, first + count), start);
    return { key, rows, tokens, ids: own, together, all: together && indices.length === known.length };
  }
}
