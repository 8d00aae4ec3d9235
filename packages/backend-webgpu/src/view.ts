import type { Row, StepBatch } from '@dsla/spec';
import type { Pool } from './buffers.js';
import { endEntries, firstToken, leastChunk, shortRow, splitKeys, tileTokens } from './kernels/kernel.js';

/** The rows of one run, as data that every kernel reads (see kernels/kernel.ts). */
export interface View {
  readonly group: GPUBindGroup;
  readonly buffer: GPUBuffer;
  readonly rows: number;
  readonly tokens: number;
  readonly tiles: number;
  readonly chunks: number;
  readonly splits: number;
  readonly singles: number;
  /** Rows that are cut into tiles and chunks. */
  readonly longs: number;
  /** Every row has one token. */
  readonly ones: boolean;
  /** Equal for views whose grids are equal. */
  readonly shape: string;
  /** Highest position + 1. */
  readonly positions: number;
  /** What values and scratch are sized for. */
  readonly capacity: Readonly<Record<'token' | 'short' | 'row' | 'chunk', number>>;
}

/** What a row contributes: `count` tokens from `past` on, the first at index `start` of the step. */
interface Stretch extends Row {
  readonly start: number;
  readonly index: number;
}

/** The views of one step; their buffers return to the pool with it. */
export class Views {
  readonly #device: GPUDevice;
  readonly #layout: GPUBindGroupLayout;
  readonly #pool: Pool;
  readonly #batch: StepBatch;
  readonly #known = new Map<string, View>();
  readonly #buffers: GPUBuffer[] = [];

  constructor(device: GPUDevice, layout: GPUBindGroupLayout, pool: Pool, batch: StepBatch) {
    this.#device = device;
    this.#layout = layout;
    this.#pool = pool;
    this.#batch = batch;
  }

  /** The new tokens of some rows (all when absent). */
  step(rows?: readonly number[]): View {
    return this.#get('step', rows, () => {
      let start = 0;
      const all = this.#batch.rows.map((row, index): Stretch => {
        const stretch = { ...row, start, index };
        start += row.count;
        return stretch;
      });
      const view = rows ? rows.map((index) => all[index]!) : all;
      return this.#make(view, start, mostChunks);
    });
  }

  /** The tokens already in the states of some rows, as if they came anew: what a fold replays. */
  past(rows?: readonly number[]): View {
    return this.#get('past', rows, () => {
      let start = 0;
      const chosen = rows ?? this.#batch.rows.map((_, index) => index);
      const view = chosen.map((index): Stretch => {
        const { slot, past } = this.#batch.rows[index]!;
        const stretch = { slot, past: 0, count: past, start, index };
        start += past;
        return stretch;
      });
      return this.#make(view, start, mostReplayed);
    });
  }

  /** All that were made of the new tokens. */
  steps(): View[] {
    return [...this.#known].filter(([key]) => key.startsWith('step')).map(([, view]) => view);
  }

  release(): void {
    for (const buffer of this.#buffers.splice(0).reverse()) this.#pool.give('batch', buffer);
  }

  #get(kind: string, rows: readonly number[] | undefined, make: () => View): View {
    const key = `${kind} ${rows?.join() ?? 'all'}`;
    let view = this.#known.get(key);
    if (!view) {
      view = make();
      this.#known.set(key, view);
    }
    return view;
  }

  #make(rows: readonly Stretch[], capacity: number, most: number): View {
    const { words, end, tokens, tiles, chunks, splits, singles, longs } = encode(rows, this.#batch.ids, most);
    const ones = rows.every(({ count }) => count === 1);
    const buffer = this.#pool.take('batch', words.byteLength + end.byteLength);
    this.#buffers.push(buffer);
    this.#device.queue.writeBuffer(buffer, 0, words);
    if (splits > 0) this.#device.queue.writeBuffer(buffer, buffer.size - end.byteLength, end);
    return {
      buffer,
      group: groupOf(this.#device, this.#layout, buffer),
      rows: rows.length,
      tokens,
      tiles,
      chunks,
      splits,
      singles,
      longs,
      ones,
      shape: [rows.length, tokens, tiles, chunks, splits, singles, longs, ones].join(),
      positions: rows.reduce((max, { past, count }) => Math.max(max, past + count), 0),
      capacity: {
        token: capacity,
        short: singles > 0 ? capacity : 0,
        row: this.#batch.rows.length,
        chunk: chunks,
      },
    };
  }
}

const groups = new WeakMap<GPUBuffer, GPUBindGroup>();

function groupOf(device: GPUDevice, layout: GPUBindGroupLayout, buffer: GPUBuffer): GPUBindGroup {
  let group = groups.get(buffer);
  if (!group) {
    group = device.createBindGroup({ layout, entries: [{ binding: 0, resource: { buffer } }] });
    groups.set(buffer, group);
  }
  return group;
}

/** Chunks of whole length in a view, at most: their states take memory. A replay reads no states but the last: longer ones. */
const mostChunks = 128;
const mostReplayed = 32;

/** Keys of a split of a token; what a row's tokens get depends on the row alone. */
function keysOf(position: number): number {
  const { least, unit, splits } = splitKeys;
  return Math.max(unit * Math.ceil((position + 1) / splits / unit), least);
}

interface Encoded {
  readonly words: Uint32Array<ArrayBuffer>;
  /** What lies at the end of the buffer. */
  readonly end: Uint32Array<ArrayBuffer>;
  readonly tokens: number;
  readonly tiles: number;
  readonly chunks: number;
  readonly splits: number;
  readonly singles: number;
  readonly longs: number;
}

function encode(rows: readonly Stretch[], ids: Int32Array, most: number): Encoded {
  const tokens = rows.reduce((sum, { count }) => sum + count, 0);
  const chunkTokens = leastChunk * 2 ** Math.ceil(Math.log2(Math.max(tokens / leastChunk / most, 1)));
  const long = rows.map(({ count }) => count > shortRow);
  const tiles = rows.reduce((sum, { count }, row) => sum + (long[row] ? Math.ceil(count / tileTokens) : 0), 0);
  const singles = rows.reduce((sum, { count }, row) => sum + (long[row] ? 0 : count), 0);
  const splitsOf = (position: number) => Math.ceil((position + 1) / keysOf(position));
  let splits = 0;
  rows.forEach(({ past, count }, row) => {
    if (!long[row]) for (let t = 0; t < count; t++) splits += splitsOf(past + t);
  });
  const tokenBase = firstToken; // in entries of four words, as all bases
  const rowBase = tokenBase + tokens;
  const lastBase = rowBase + rows.length;
  const tileBase = lastBase + rows.length;
  const longBase = tileBase + tiles;
  const longs = long.filter(Boolean).length;
  const words = new Uint32Array(4 * (longBase + longs));
  let at = 0;
  const put = (a: number, b: number, c: number, d: number) => {
    words[at++] = a;
    words[at++] = b;
    words[at++] = c;
    words[at++] = d;
  };
  put(rows.length, tokens, rows.length, tiles);
  put(rowBase, tokenBase, lastBase, tileBase);
  put(0, 0, chunkTokens, longBase);
  put(splits, singles, 0, 0);
  rows.forEach(({ past, start, count }, row) => {
    for (let t = 0; t < count; t++) put(start + t, row, past + t, ids[start + t] ?? 0);
  });
  for (const { slot, past, start, count } of rows) put(slot, past, start, count);
  // A row without tokens has no last one: any index that exists will do, since nobody reads the result.
  rows.forEach(({ past, start, count, index }, row) => {
    put(index, row, Math.max(past + count - 1, 0), count > 0 ? start + count - 1 : 0);
  });
  let chunks = 0;
  rows.forEach(({ count }, row) => {
    if (!long[row]) return;
    for (let t = 0; t < count; t += tileTokens)
      put(row, t, Math.min(tileTokens, count - t), chunks + Math.floor(t / chunkTokens));
    chunks += Math.ceil(count / chunkTokens);
  });
  let chunk = 0;
  rows.forEach(({ count }, row) => {
    if (!long[row]) return;
    const own = Math.ceil(count / chunkTokens);
    put(row, chunk, own, 0);
    chunk += own;
  });
  return { words, end: endOf(rows, splits), tokens, tiles, chunks, splits, singles, longs };
}

/** Splits, their rows, and all splits of their tokens: every one by one load. */
function endOf(rows: readonly Stretch[], splits: number): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(4 * endEntries * splits);
  const put = (index: number, entry: number, ...four: readonly number[]) =>
    words.set(four, words.length - 4 * (endEntries * index + entry + 1));
  let split = 0;
  for (const { slot, past, start, count } of rows) {
    if (count > shortRow) continue;
    for (let t = 0; t < count; t++) {
      const position = past + t;
      const keys = keysOf(position);
      const own = Math.ceil((position + 1) / keys);
      const first = split;
      for (let n = 0; n < own; n++, split++) {
        put(split, 0, start + t, n * keys, Math.min(keys, position + 1 - n * keys), 0);
        put(split, 1, slot, past, start, position);
        put(split, 2, first, own, keys, 0);
      }
    }
  }
  return words;
}
