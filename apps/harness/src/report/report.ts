import { DslaError } from '@dsla/spec';
import { z } from 'zod';

// One shape for the table, the page and whoever reads report.json.

const estimate = z.object({
  value: z.number(),
  /** 95 % interval; null where one observation cannot give one. */
  low: z.number().nullable(),
  high: z.number().nullable(),
  n: z.int().positive(),
});

const model = z.object({
  id: z.string(),
  name: z.string(),
  architecture: z.string(),
  parameters: z.int(),
  vocabulary: z.int(),
  /** Longest sequence it was trained for, in tokens. */
  context: z.int(),
  /** Layers whose mixer can be exchanged. */
  convertible: z.int(),
  /** Layer indices in the order of conversion; level n converts the first n. Empty for a model that is not converted. */
  order: z.array(z.int()),
  orderOrigin: z.string(),
});

/** Kinds of contenders, in the order in which they are listed and drawn. */
const families = ['softmax', 'zamba', 'foldable', 'untuned', 'window', 'single', 'published'] as const;

const contender = z.object({
  id: z.string(),
  label: z.string(),
  model: z.string(),
  family: z.enum(families),
  /** Converted layers. */
  level: z.int().nonnegative(),
  layers: z.int().nonnegative(),
  tuned: z.boolean(),
  /** Bytes of the weights that this contender reads, as the checkpoint stores them. */
  weightBytes: z.int(),
});

const quality = z.object({
  contender: z.string(),
  /** Tokens of the window. */
  length: z.int().positive(),
  estimate,
});

const recall = quality.extend({
  /** Distances between fact and question, in tokens, both included; `length` is that of the windows read. */
  from: z.int().nonnegative(),
  to: z.int().positive(),
});

const speed = z.object({
  contender: z.string(),
  backend: z.string(),
  test: z.enum(['prefill', 'decode']),
  /** Tokens: prompt for prefill, context already held for decode. */
  length: z.int().positive(),
  /** Tokens that one sample counts. */
  tokens: z.int().positive(),
  /** Milliseconds of each sample, in the order measured. */
  samples: z.array(z.number().positive()).min(1),
  /** Tokens per second. */
  mean: z.number(),
  sd: z.number().nullable(),
  median: z.number(),
});

const cache = z.object({ contender: z.string(), length: z.int().positive(), bytes: z.int().nonnegative() });

const crossing = z.object({
  contender: z.string(),
  against: z.string(),
  backend: z.string(),
  quantity: z.enum(['prefill', 'decode', 'cache']),
  /** 'always' and 'never' speak of the measured lengths only. */
  from: z.union([z.literal('always'), z.literal('never'), z.number().positive()]),
  shortest: z.int(),
  longest: z.int(),
});

const schema = z.object({
  format: z.literal('dsla-report'),
  version: z.literal(1),
  createdAt: z.iso.datetime(),
  seconds: z.number(),
  command: z.array(z.string()),
  commit: z.string().nullable(),
  machine: z.object({
    cpu: z.string(),
    cores: z.int(),
    memoryBytes: z.number(),
    system: z.string(),
    node: z.string(),
    packages: z.record(z.string(), z.string()),
  }),
  backends: z.array(z.object({ name: z.string(), description: z.string(), threads: z.int().nullable() })),
  text: z.object({ name: z.string(), bytes: z.int(), sha256: z.string() }),
  /** How it was measured, one sentence an entry. */
  protocol: z.array(z.string()),
  /** What was asked for and could not be measured, one sentence an entry. */
  gaps: z.array(z.string()),
  models: z.array(model).min(1),
  contenders: z.array(contender).min(1),
  bitsPerByte: z.array(quality),
  /** Bits per byte above the softmax model on the same windows: the intervals are of the paired differences. */
  excess: z.array(quality),
  recall: z.array(recall),
  speed: z.array(speed),
  cache: z.array(cache),
  crossings: z.array(crossing),
});

export type Report = z.infer<typeof schema>;
export type Contender = Report['contenders'][number];
export type Family = Contender['family'];
export type Speed = Report['speed'][number];
export type Crossing = Report['crossings'][number];

/** Reads a report back. @throws DslaError E_FORMAT with every problem. */
export function parseReport(text: string, where: string): Report {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch (cause) {
    throw new DslaError('E_FORMAT', { where, rule: 'must be JSON', cure: 'Run `dsla compare` again.', cause });
  }
  const result = schema.safeParse(data);
  if (result.success) return result.data;
  throw new DslaError('E_FORMAT', {
    where,
    rule: `must be a report of version 1: ${z.prettifyError(result.error).replaceAll('\n', ' ')}`,
    cure: 'Run `dsla compare` again with this version.',
  });
}
