import { cpus } from 'node:os';
import { shapes } from '@dsla/models';
import type { Model } from '@dsla/runtime';
import { type Device, DslaError } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { checkpointOf, openNetwork, openSynthetic, planOf, untuned } from '../checkpoint.js';
import { summarise } from '../measure/statistics.js';
import { runTest, type Test, testName } from '../measure/tests.js';
import { parameterCount, weightBytes } from '../measure/weights.js';
import { commit } from '../report/machine.js';
import { type Io, print, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions, whole, wholes } from '../ui/options.js';
import { openProgress } from '../ui/progress.js';
import { type Column, renderCsv, renderMarkdown, renderTable } from '../ui/table.js';
import { formatBytes, formatCount } from '../ui/units.js';
import { addModelOptions, inspectOptions, type ModelOptions, type Opening, openDevice } from './model-options.js';

interface BenchOptions extends CommonOptions, ModelOptions {
  readonly prompt: readonly number[];
  readonly generate: readonly number[];
  readonly depth: readonly number[];
  readonly batch: readonly number[];
  readonly stepTokens?: number;
  readonly shape?: keyof typeof shapes;
  readonly synthetic?: true;
  readonly repetitions: number;
  readonly warmUp: boolean;
  readonly csv?: true;
  readonly md?: true;
}

/** A row under llama-bench's names where it has them; `level`, `mixer`, `n` and `median_ts` are ours. */
export interface BenchRow {
  readonly build_commit: string | null;
  readonly cpu_info: string;
  readonly backends: string;
  readonly device: string;
  readonly model_filename: string;
  readonly model_type: string;
  /** Bytes, by the formats of the weights. */
  readonly model_size: number;
  readonly model_n_params: number;
  /** Numbers that are computed with, and those of the matrices where they are others. */
  readonly precision: string;
  readonly weights: string;
  readonly mixer: string;
  readonly level: number;
  readonly layers: number;
  /** Null: left to the backend. */
  readonly n_threads: number | null;
  readonly n_prompt: number;
  readonly n_gen: number;
  readonly n_depth: number;
  /** Sequences that run together. */
  readonly n_seq: number;
  readonly test: string;
  readonly test_time: string;
  readonly warm_up: boolean;
  readonly n: number;
  readonly avg_ts: number;
  readonly stddev_ts: number | null;
  readonly median_ts: number;
  readonly samples_ts: readonly number[];
}

export function addBench(program: Command, io: Io): void {
  const command = program
    .command('bench')
    .description('prefill and decode speed, in rows like those of llama-bench')
    .option('-p, --prompt <n,...>', 'prefill tests: tokens of the prompt; 0 for none', wholes(0), [512])
    .option('-n, --generate <n,...>', 'decode tests: tokens generated; 0 for none', wholes(0), [128])
    .option('-d, --depth <n,...>', 'tokens already in the cache', wholes(0), [0])
    .option('--batch <n,...>', 'sequences that run together', wholes(1), [1])
    .option('--step-tokens <n>', 'most tokens of a prompt in one step', whole(1))
    .addOption(new Option('--shape <name>', 'a known model instead of a folder').choices(Object.keys(shapes)))
    .option('--synthetic', 'random weights: of a folder, only config.json is read')
    .option('-r, --repetitions <n>', 'times that each test is run', whole(1), 5)
    .option('--no-warm-up', 'do not run each test before it counts')
    .option('--csv', 'print comma-separated values')
    .option('--md', 'print a Markdown table');
  addCommonOptions(addModelOptions(command)).action((options: BenchOptions) => runBench(options, io));
}

async function runBench(options: BenchOptions, io: Io): Promise<void> {
  const tests = testsOf(options);
  const { signal } = io;
  const opening = await openingOf(options, signal);
  const open = options.synthetic ? openSynthetic : openNetwork;
  using progress = openProgress(io, options.quiet === true);
  await using device = await openDevice(options, signal);
  await using model = await open(opening.checkpoint, opening.conversion, device, {
    signal,
    slots: 1 + Math.max(...tests.map(({ batch }) => batch)), // one is the prompt that the others continue
    context: Math.max(...tests.map(({ depth, tokens }) => depth + tokens)),
    ...(options.stepTokens !== undefined && { stepTokens: options.stepTokens }),
  });
  const head = await commit();
  const rows: BenchRow[] = [];
  progress.stage('bench', tests.length);
  for (const test of tests) {
    const samples = await runTest(model, test, options, signal);
    rows.push(rowOf(options, opening, model, device, test, samples, head));
    progress.step(testName(test));
  }
  progress.end();
  printRows(rows, options, io);
}

/** @throws DslaError E_INPUT for a shape without --synthetic; what reading a folder throws */
async function openingOf(options: BenchOptions, signal: AbortSignal): Promise<Opening> {
  const { shape, synthetic, mixer, level } = options;
  if (shape === undefined) return inspectOptions(synthetic ? { ...options, untuned: true } : options, signal);
  if (synthetic) return { checkpoint: checkpointOf(shape), conversion: untuned(mixer ?? 'foldable', level) };
  throw new DslaError('E_INPUT', {
    where: '--shape',
    rule: 'a shape has no weights of its own',
    got: shape,
    cure: 'Add --synthetic for random ones, or name a checkpoint with --model.',
  });
}

function testsOf({ prompt, generate, depth, batch }: BenchOptions): Test[] {
  const tests = batch.flatMap((sequences) =>
    depth.flatMap((each): Test[] => [
      ...prompt.map((tokens): Test => ({ kind: 'prefill', tokens, depth: each, batch: sequences })),
      ...generate.map((tokens): Test => ({ kind: 'decode', tokens, depth: each, batch: sequences })),
    ]),
  );
  const wanted = tests.filter(({ tokens }) => tokens > 0);
  if (wanted.length > 0) return wanted;
  throw new DslaError('E_INPUT', {
    where: 'bench',
    rule: 'there must be at least one test',
    got: 0,
    cure: 'Set --prompt or --generate above 0.',
  });
}

function rowOf(
  options: BenchOptions,
  { checkpoint, conversion }: Opening,
  model: Model,
  device: Device,
  test: Test,
  samples: readonly number[],
  head: string | null,
): BenchRow {
  const { mean, sd, median } = summarise(samples);
  const plan = planOf(checkpoint, conversion);
  const { computeType } = device.capabilities;
  return {
    build_commit: head,
    cpu_info: cpus()[0]?.model.trim() ?? 'unknown',
    backends: device.backend,
    device: device.description,
    model_filename: checkpoint.name,
    model_type: model.description.architecture,
    model_size: weightBytes(model.description, plan, computeType, options.weights),
    model_n_params: parameterCount(model.description, plan),
    precision: computeType,
    weights: options.weights ?? computeType,
    mixer: conversion.level === 0 ? 'softmax' : conversion.mixer,
    level: conversion.level,
    layers: checkpoint.convertible,
    n_threads: options.threads ?? null,
    n_prompt: test.kind === 'prefill' ? test.tokens : 0,
    n_gen: test.kind === 'decode' ? test.tokens : 0,
    n_depth: test.depth,
    n_seq: test.batch,
    test: testName(test),
    test_time: new Date().toISOString(),
    warm_up: options.warmUp,
    n: samples.length,
    avg_ts: mean,
    stddev_ts: sd,
    median_ts: median,
    samples_ts: samples,
  };
}

const columns: readonly Column<BenchRow>[] = [
  { title: 'model', align: 'left', cell: ({ model_filename }) => model_filename },
  { title: 'size', cell: ({ model_size }) => formatBytes(model_size) },
  { title: 'params', cell: ({ model_n_params }) => formatCount(model_n_params) },
  { title: 'attention', align: 'left', cell: ({ mixer, level, layers }) => `${mixer} ${level}/${layers}` },
  { title: 'backend', align: 'left', cell: ({ backends }) => backends },
  { title: 'weights', align: 'left', cell: ({ weights }) => weights },
  { title: 'threads', cell: ({ n_threads }) => String(n_threads ?? 'auto') },
  { title: 'test', align: 'left', cell: ({ test }) => test },
  { title: 'n', cell: ({ n }) => String(n) },
  { title: 't/s', cell: ({ avg_ts }) => avg_ts.toFixed(2) },
  { title: 'sd', cell: ({ stddev_ts }) => (stddev_ts === null ? '–' : stddev_ts.toFixed(2)) },
  { title: 'median', cell: ({ median_ts }) => median_ts.toFixed(2) },
];

function printRows(rows: readonly BenchRow[], { json, csv, md, warmUp }: BenchOptions, io: Io): void {
  if (json) printJson(io, { rows });
  else if (csv) print(io, renderCsv(csvColumns(rows[0]!), rows));
  else {
    print(io, md ? renderMarkdown(columns, rows) : renderTable(io, columns, rows));
    print(
      io,
      `${rows[0]!.device}. ${warmUp ? 'Each test ran before it counted, until its speed was steady.' : 'No warm-up.'}`,
    );
  }
}

function csvColumns(first: BenchRow): Column<BenchRow>[] {
  const keys = (Object.keys(first) as (keyof BenchRow)[]).filter((key) => key !== 'samples_ts');
  return keys.map((key) => ({ title: key, cell: (row) => String(row[key] ?? '') }));
}
