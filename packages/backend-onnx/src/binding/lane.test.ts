import { describe, expect, it } from 'vitest';
import { type HeldSession, Shelf } from './lane.js';

describe('a shelf of idle sessions', () => {
  const released: bigint[] = [];
  const session = (handle: bigint): HeldSession => ({ handle, release: () => void released.push(handle) });
  const key = (...bytes: number[]) => Shelf.keyOf(Uint8Array.from(bytes));

  it('gives back each session once, to those who ask for the same model', () => {
    const shelf = new Shelf();
    shelf.put(key(1, 2), session(1n));
    shelf.put(key(1, 2), session(2n));
    expect(shelf.take(key(1, 3))).toBeUndefined();
    const taken = [1, 2, 3].map(() => shelf.take(key(1, 2))?.handle);
    expect(taken.toSorted()).toEqual([1n, 2n, undefined]);
    expect(released).toEqual([]);
  });

  it('releases the longest idle beyond 64, and all when memory is wanted', () => {
    const shelf = new Shelf();
    for (let at = 0; at < 66; at++) shelf.put(key(at), session(BigInt(at)));
    expect(released.splice(0)).toEqual([0n, 1n]);
    expect(shelf.clear()).toBe(true);
    expect(released.splice(0)).toHaveLength(64);
    expect(shelf.clear()).toBe(false);
  });
});
