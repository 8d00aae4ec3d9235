import { DslaError } from '@dsla/spec';
import { z } from 'zod';
import { parse } from './parse.js';

/** In which order the layers of a model are converted. Level n of the model: layers order[0..n) converted. */
export interface LayerOrder {
  /** Each of the layers 0..order.length-1 once; what is converted first stands first. */
  readonly order: readonly number[];
  /** Layers at the end of the order that should not be converted, because they carry recall. */
  readonly keep: number;
  /** How it was found, as a sentence. */
  readonly origin?: string | undefined;
  /** What it was sorted by. */
  readonly metric?: string | undefined;
  /** What was measured, an entry a layer. */
  readonly evidence?: readonly Evidence[] | undefined;
}

export interface Evidence {
  readonly layer: number;
  readonly [measure: string]: number | string | readonly number[] | null;
}

const measure = z.union([z.number(), z.string(), z.array(z.number()), z.null()]);
const schema = z
  .object({
    order: z.array(z.int().nonnegative()).min(1),
    keep: z.int().nonnegative().default(0),
    origin: z.string().optional(),
    metric: z.string().optional(),
    evidence: z.array(z.object({ layer: z.int().nonnegative() }).catchall(measure)).optional(),
  })
  .check(({ value, issues }) => {
    const { order, keep, evidence = [] } = value;
    const report = (path: string, message: string) =>
      issues.push({ code: 'custom', path: [path], message, input: value });
    const missing = order.findIndex((_, layer) => !order.includes(layer));
    if (missing >= 0) report('order', `must hold each of the layers 0..${order.length - 1} once, lacks ${missing}`);
    if (keep > order.length) report('keep', `must be at most the ${order.length} layers of the order, got ${keep}`);
    const stranger = evidence.find(({ layer }) => layer >= order.length);
    if (stranger) report('evidence', `its layers must be in 0..${order.length - 1}, got ${stranger.layer}`);
  });

/**
 * Checks the content of an order.json; `layers` is the number of convertible layers of the model that it is for.
 * @throws DslaError E_FORMAT with every problem; E_INPUT for an order of another model
 */
export function parseOrder(value: unknown, where: string, layers?: number): LayerOrder {
  const order = parse(schema, value, where, 'It must hold "order", a list of layers, and may hold "keep", a count.');
  if (layers !== undefined && order.order.length !== layers) {
    throw new DslaError('E_INPUT', {
      where,
      rule: `the order must name the ${layers} convertible layers of the model`,
      got: order.order,
      cure: 'Measure one for this model: dsla order.',
    });
  }
  return order;
}

/** Layers by ascending score, the lower layer first among equals. @throws DslaError E_INPUT for a score that is no number */
export function orderBy(scores: readonly number[]): number[] {
  const wrong = scores.findIndex(Number.isNaN);
  if (wrong >= 0) {
    throw new DslaError('E_INPUT', { where: `layer ${wrong}`, rule: 'its score must be a number', got: Number.NaN });
  }
  return [...scores.keys()].sort((a, b) => compare(scores[a]!, scores[b]!) || a - b);
}

// Not a - b: that is NaN for two infinities.
const compare = (a: number, b: number): number => (a < b ? -1 : a > b ? 1 : 0);
