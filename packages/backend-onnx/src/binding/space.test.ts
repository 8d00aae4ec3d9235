import { describe, expect, it } from 'vitest';
import { PagedSpace, type Pages } from './space.js';

const size = 100;
const base = 5000n;

/** Pages that remember what is mapped, and refuse what a driver refuses. */
function pagesOf(limit: number): { pages: Pages; mapped: Map<bigint, number>; used(): number } {
  const mapped = new Map<bigint, number>();
  const used = (): number => [...mapped.values()].reduce((sum, bytes) => sum + bytes, 0) / size;
  const pages: Pages = {
    size,
    map(address, bytes) {
      for (const [start, length] of mapped)
        expect(address >= start + BigInt(length) || address + BigInt(bytes) <= start, 'mapped twice').toBe(true);
      expect((address - base) % BigInt(size)).toBe(0n);
      if (used() + bytes / size > limit) return false;
      mapped.set(address, bytes);
      return true;
    },
    unmap(address, bytes) {
      expect(mapped.get(address), 'unmapped as it was mapped').toBe(bytes);
      mapped.delete(address);
    },
  };
  return { pages, mapped, used };
}

/** Every byte of the parts lies in a mapped page. */
function covered(mapped: ReadonlyMap<bigint, number>, from: number, bytes: number): boolean {
  const holds = (at: number): boolean =>
    [...mapped].some(([start, length]) => base + BigInt(at) >= start && base + BigInt(at) < start + BigInt(length));
  return Array.from({ length: bytes }, (_, index) => from + index).every(holds);
}

describe.each([30, 100, 130, 250, 400])('parts of %i bytes in pages of 100', (stride) => {
  it('are backed while they are taken, in any order, and leave nothing behind', () => {
    const { pages, mapped, used } = pagesOf(1000);
    const space = new PagedSpace(pages, base);
    const order = [3, 0, 1, 7, 2, 5];
    const taken = new Set<number>();
    const check = (): void => {
      for (const index of taken) expect(covered(mapped, index * stride, stride)).toBe(true);
    };
    for (const index of order) {
      expect(space.take(index * stride, stride)).toBe(true);
      taken.add(index);
      check();
    }
    for (const index of [0, 7, 1, 3, 5, 2]) {
      space.give(index * stride, stride);
      taken.delete(index);
      check();
    }
    expect(used()).toBe(0);
  });

  it('take nothing where memory is short', () => {
    const { pages, used } = pagesOf(Math.ceil((2 * stride) / size));
    const space = new PagedSpace(pages, base);
    expect([space.take(0, stride), space.take(stride, stride)]).toEqual([true, true]);
    const before = used();
    expect(space.take(9 * stride + 50, 5 * stride + size)).toBe(false);
    expect(used()).toBe(before);
    space.give(0, stride);
    space.give(stride, stride);
    expect(used()).toBe(0);
  });
});
