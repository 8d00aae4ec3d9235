import type { Block } from './block.js';

/** A stretch of addresses whose parts are backed by memory while they are taken: neighbours form one tensor. */
export interface Space {
  /** Bytes of the pages it is backed by: less is not taken from what is left. */
  readonly page: number;
  /** Backs a part with zeroed memory until it is freed; undefined where there is none left. */
  take(from: number, bytes: number): Block | undefined;
  /** Nothing of it may be taken any more. */
  free(): void;
}

/** Memory that comes in pages. */
export interface Pages {
  readonly size: number;
  /** False where there is none left. */
  map(address: bigint, bytes: number): boolean;
  /** The same stretch as was mapped. */
  unmap(address: bigint, bytes: number): void;
}

/** Backs parts of a space with whole pages; a page at a border serves both sides and stays until neither is taken. */
export class PagedSpace {
  readonly #pages: Pages;
  readonly #address: bigint;
  /** How many parts a border page serves, by its number. */
  readonly #users = new Map<number, number>();

  constructor(pages: Pages, address: bigint) {
    this.#pages = pages;
    this.#address = address;
  }

  /** False, with nothing taken, where there is no memory left. */
  take(from: number, bytes: number): boolean {
    const { borders, first, count } = this.#cover(from, bytes);
    const done: number[] = [];
    for (const page of borders) {
      if (!this.#users.has(page) && !this.#map(page, 1)) {
        for (const each of done) this.#leave(each);
        return false;
      }
      this.#users.set(page, (this.#users.get(page) ?? 0) + 1);
      done.push(page);
    }
    if (count === 0 || this.#map(first, count)) return true;
    for (const page of done) this.#leave(page);
    return false;
  }

  give(from: number, bytes: number): void {
    const { borders, first, count } = this.#cover(from, bytes);
    for (const page of borders) this.#leave(page);
    if (count > 0) this.#unmap(first, count);
  }

  /** Pages that lie inside a part, and those that it shares. */
  #cover(
    from: number,
    bytes: number,
  ): { readonly borders: readonly number[]; readonly first: number; readonly count: number } {
    const { size } = this.#pages;
    const [outer, end] = [Math.floor(from / size), Math.ceil((from + bytes) / size)];
    const [first, last] = [Math.ceil(from / size), Math.floor((from + bytes) / size)];
    const count = Math.max(0, last - first);
    const all = Array.from({ length: end - outer }, (_, index) => outer + index);
    return { borders: all.filter((page) => count === 0 || page < first || page >= last), first, count };
  }

  #leave(page: number): void {
    const left = this.#users.get(page)! - 1;
    if (left > 0) this.#users.set(page, left);
    else {
      this.#users.delete(page);
      this.#unmap(page, 1);
    }
  }

  #map(page: number, count: number): boolean {
    return this.#pages.map(this.#at(page), count * this.#pages.size);
  }

  #unmap(page: number, count: number): void {
    this.#pages.unmap(this.#at(page), count * this.#pages.size);
  }

  #at(page: number): bigint {
    return this.#address + BigInt(page * this.#pages.size);
  }
}
