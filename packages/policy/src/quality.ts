import { DslaError } from '@dsla/spec';
import { z } from 'zod';
import type { Estimate } from './estimate.js';
import { checkLevel } from './levels.js';
import { parse } from './parse.js';

/**
 * q(level, task, length): what a level loses against level 0, measured. Rules for what was not measured, each to the safe
 * side, so that a query never answers better than some measurement:
 * - length: a request belongs to the first bucket that reaches as far; beyond the last bucket nothing is known;
 * - level: a level counts as the next higher measured one of the bucket; above the highest nothing is known;
 * - a level counts as at least as bad as every lower one (isotonic: noise cannot make more conversion look better).
 */
export interface QualityTable {
  readonly format: 'dsla-quality';
  readonly version: 1;
  /** Convertible layers of the model. */
  readonly layers: number;
  /** Coverage of the two-sided intervals, e.g. 0.95. */
  readonly confidence: number;
  /** Unit of every task's loss: `bits per byte`, `share of answers`. */
  readonly tasks: Readonly<Record<string, string>>;
  readonly entries: readonly QualityEntry[];
}

export interface QualityEntry {
  readonly level: number;
  readonly task: string;
  /** Longest request of the bucket, in tokens; the bucket begins above the next shorter one. */
  readonly length: number;
  /** Positive is worse than level 0. */
  readonly loss: Estimate;
}

const loss = z
  .object({ value: z.number(), low: z.number().nullable(), high: z.number().nullable(), n: z.int().positive() })
  .refine(
    ({ value, low, high }) => (low ?? value) <= value && value <= (high ?? value),
    'the value must lie within its interval',
  );
const schema = z
  .object({
    format: z.literal('dsla-quality'),
    version: z.literal(1),
    layers: z.int().positive(),
    confidence: z.number().gt(0).lt(1),
    tasks: z.record(z.string(), z.string()),
    entries: z.array(z.object({ level: z.int().positive(), task: z.string(), length: z.int().positive(), loss })),
  })
  .check(({ value: { layers, tasks, entries }, issues }) => {
    const seen = new Set<string>();
    for (const [index, entry] of entries.entries()) {
      const key = [entry.level, entry.task, entry.length].join();
      const problem = seen.has(key)
        ? 'a level, task and length may be measured once'
        : entry.level > layers
          ? `the level must be at most ${layers}`
          : Object.hasOwn(tasks, entry.task)
            ? undefined
            : 'the task must be one of "tasks"';
      if (problem) issues.push({ code: 'custom', path: ['entries', index], message: problem, input: entry });
      seen.add(key);
    }
  });

/** Checks the content of a quality table. @throws DslaError E_FORMAT with every problem */
export function parseQuality(value: unknown, where: string): QualityTable {
  return parse(schema, value, where, 'Measure it again.');
}

/**
 * Upper end of the interval of what a level loses on a task at a length, by the rules above; 0 at level 0, infinite where
 * nothing is known. It never falls as the level rises.
 * @throws DslaError E_INPUT for a level, task or length that cannot be
 */
export function lossBound(table: QualityTable, level: number, task: string, length: number): number {
  checkLevel(level, table.layers);
  checkTask(table, task);
  if (!(length > 0)) throw new DslaError('E_INPUT', { where: 'length', rule: 'must be positive', got: length });
  if (level === 0) return 0;
  const ofTask = table.entries.filter((entry) => entry.task === task);
  const bucket = Math.min(...ofTask.map((entry) => entry.length).filter((longest) => longest >= length));
  const measured = ofTask.filter((entry) => entry.length === bucket).sort((a, b) => a.level - b.level);
  const standsFor = measured.find((entry) => entry.level >= level);
  if (!standsFor) return Number.POSITIVE_INFINITY;
  const lower = measured.filter((entry) => entry.level <= standsFor.level);
  return Math.max(...lower.map((entry) => entry.loss.high ?? Number.POSITIVE_INFINITY));
}

/**
 * The highest level at which a request of `length` tokens loses, with the table's confidence, at most `most[task]` on every
 * task named. Never falls when a limit is raised; 0 where nothing is known.
 * @throws DslaError E_INPUT for no task, an unknown one, or a limit below 0, which even level 0 breaks
 */
export function highestLevel(table: QualityTable, length: number, most: Readonly<Record<string, number>>): number {
  const limits = Object.entries(most);
  if (limits.length === 0) {
    throw new DslaError('E_INPUT', { where: 'highestLevel', rule: 'there must be a limit for some task', got: 'none' });
  }
  for (const [task, limit] of limits) {
    checkTask(table, task);
    if (!(limit >= 0))
      throw new DslaError('E_INPUT', { where: `limit of ${task}`, rule: 'must be at least 0', got: limit });
  }
  const allowed = (level: number) => limits.every(([task, limit]) => lossBound(table, level, task, length) <= limit);
  let level = 0;
  while (level < table.layers && allowed(level + 1)) level++;
  return level;
}

function checkTask({ tasks }: QualityTable, task: string): void {
  if (Object.hasOwn(tasks, task)) return;
  throw new DslaError('E_INPUT', { where: 'task', rule: `must be one of ${Object.keys(tasks).join(', ')}`, got: task });
}
