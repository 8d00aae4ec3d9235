import { DslaError } from '@dsla/spec';
import type { LayerOrder } from './order.js';

// A level is the number of converted layers, a prefix of one order: chained tuning makes only prefixes valid.

/** Converted layers at a level. @throws DslaError E_INPUT */
export function layersAt({ order }: Pick<LayerOrder, 'order'>, level: number): readonly number[] {
  checkLevel(level, order.length);
  return order.slice(0, level);
}

/** The highest level that converts at most this share of the layers; shares such as 1/3 lose nothing to rounding. */
export function levelAt(layers: number, share: number): number {
  if (!(share >= 0 && share <= 1)) {
    throw new DslaError('E_INPUT', { where: 'levelAt', rule: 'the share must be in 0..1', got: share });
  }
  return Math.floor(layers * share + 1e-9);
}

/** The levels worth looking at: quarters, all but the layers to keep, and all; ascending, each once, without 0. */
export function notableLevels({ order, keep }: Pick<LayerOrder, 'order' | 'keep'>): number[] {
  const layers = order.length;
  const levels = [...[0.25, 0.5, 0.75, 1].map((share) => levelAt(layers, share)), layers - keep];
  return [...new Set(levels)].filter((level) => level > 0).sort((a, b) => a - b);
}

/** @throws DslaError E_INPUT */
export function checkLevel(level: number, layers: number): void {
  if (Number.isInteger(level) && level >= 0 && level <= layers) return;
  throw new DslaError('E_INPUT', { where: 'level', rule: `must be an integer in 0..${layers}`, got: level });
}
