import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { layersAt, levelAt, notableLevels } from './levels.js';
import { orderBy, parseOrder } from './order.js';

const where = 'order.json';
const permutation = fc
  .integer({ min: 1, max: 40 })
  .chain((count) => fc.shuffledSubarray([...Array(count).keys()], { minLength: count }));

describe('parseOrder', () => {
  it('reads the order that comes with the small Llama', () => {
    const file = new URL('../../../apps/harness/checkpoints/llama-4m/order.json', import.meta.url);
    const order = parseOrder(JSON.parse(readFileSync(file, 'utf8')), where, 8);
    expect(order.keep).toBe(1);
    expect(order.evidence).toHaveLength(8);
    expect(order.evidence?.map(({ layer }) => layer)).toEqual(order.order);
  });

  it('takes every permutation and returns it', () => {
    fc.assert(
      fc.property(permutation, fc.nat(40), (order, keep) => {
        const value = { order, keep: Math.min(keep, order.length), evidence: [{ layer: 0, kl: 0.5, tags: [1, 2] }] };
        expect(parseOrder(JSON.parse(JSON.stringify(value)), where)).toEqual(value);
      }),
    );
  });

  it.each([
    [{ order: [0, 2] }, /order: must hold each of the layers 0..1 once, lacks 1/],
    [{ order: [0, 0] }, /lacks 1/],
    [{ order: [1, 0], keep: 3 }, /keep: must be at most the 2 layers of the order, got 3/],
    [{ order: [1, 0], evidence: [{ layer: 2 }] }, /evidence: its layers must be in 0..1, got 2/],
    [{ order: [] }, /order/],
    [{ keep: 1 }, /order/],
    [[1, 0], /file/],
  ])('refuses %j', (value, message) => {
    expect(() => parseOrder(value, where)).toThrow(message);
    expect(() => parseOrder(value, where)).toThrow(expect.objectContaining({ code: 'E_FORMAT' }));
  });

  it('refuses the order of another model', () => {
    expect(() => parseOrder({ order: [1, 0] }, where, 8)).toThrow(expect.objectContaining({ code: 'E_INPUT' }));
  });
});

describe('orderBy', () => {
  it('sorts by score, then by layer, and keeps every layer', () => {
    expect(orderBy([3, 1, 2, 1])).toEqual([1, 3, 2, 0]);
    expect(orderBy([Number.POSITIVE_INFINITY, 0, Number.POSITIVE_INFINITY])).toEqual([1, 0, 2]);
    expect(() => orderBy([0, Number.NaN])).toThrow(/layer 1: its score must be a number/);
  });
});

describe('levels', () => {
  it('are prefixes, each within the next', () => {
    fc.assert(
      fc.property(permutation, (order) => {
        for (let level = 0; level < order.length; level++) {
          const [small, large] = [layersAt({ order }, level), layersAt({ order }, level + 1)];
          expect(large.slice(0, level)).toEqual(small);
          expect(large).toHaveLength(level + 1);
        }
      }),
    );
    expect(() => layersAt({ order: [0] }, 2)).toThrow(/in 0..1/);
  });

  it('convert at most the share asked for', () => {
    expect([0, 0.25, 0.5, 1].map((share) => levelAt(22, share))).toEqual([0, 5, 11, 22]);
    expect(levelAt(3, 2 / 3)).toBe(2);
    expect(() => levelAt(8, 1.5)).toThrow(/0..1/);
  });

  it('worth looking at', () => {
    expect(notableLevels({ order: [3, 1, 4, 2, 5, 0, 6, 7], keep: 1 })).toEqual([2, 4, 6, 7, 8]);
    expect(notableLevels({ order: [1, 0], keep: 2 })).toEqual([1, 2]);
  });
});
