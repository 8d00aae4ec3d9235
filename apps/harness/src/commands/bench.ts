import { cpus } from 'node:os';
import type { Model } from '@dsla/runtime';
import { type Device, DslaError } from '@dsla/spec';
import type { Command } from 'commander';
import { openNetwork, planOf } from '../checkpoint.js';
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
  readonly model_size: number;
  readonly model_n_params: number;
  readonly mixer: string;
  readonly level: number;
  readonly layers: number;
  /** Null: left to the backend. */
  readonly n_threads: number | null;
  readonly n_prompt: number;
  readonly n_gen: number;
  readonly n_depth: number;
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
    .option('-r, --repetitions <n>', 'times that each test is run', whole(1), 5)
    .option('--no-warm-up', 'do not run each test once before it counts')
    .option('--csv', 'print comma-separated values')
    .option('--md', 'print a Markdown table');
  addCommonOptions(addModelOptions(command)).action((options: BenchOptions) => runBench(options, io));
}

async function runBench(options: BenchOptions, io: Io): Promise<void> {
  const tests = testsOf(options);
  const { signal } = io;
  const opening = await inspectOptions(options, signal);
  using progress = openProgress(io, options.quiet === true);
  await using device = await openDevice(options, signal);
  const context = Math.max(...tests.map(({ depth, tokens }) => depth + tokens));
  await using model = await openNetwork(opening.checkpoint, opening.conversion, device, {
    signal,
    slots: 2,
    context,
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

function testsOf({ prompt, generate, depth }: BenchOptions): Test[] {
  const tests = depth.flatMap((each): Test[] => [
    ...prompt.map((tokens): Test => ({ kind: 'prefill', tokens, depth: each })),
    ...generate.map((tokens): Test => ({ kind: 'decode', tokens, depth: each })),
  ]);
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
  return {
    build_commit: head,
    cpu_info: cpus()[0]?.model.trim() ?? 'unknown',
    backends: device.backend,
    device: device.description,
    model_filename: checkpoint.name,
    model_type: model.description.architecture,
    model_size: weightBytes(model.description, plan, device.capabilities.computeType),
    model_n_params: parameterCount(model.description, plan),
    mixer: conversion.level === 0 ? 'softmax' : conversion.mixer,
    level: conversion.level,
    layers: checkpoint.convertible,
    n_threads: options.threads ?? null,
    n_prompt: test.kind === 'prefill' ? test.tokens : 0,
    n_gen: test.kind === 'decode' ? test.tokens : 0,
    n_depth: test.depth,
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
    print(io, `${rows[0]!.device}. ${warmUp ? 'Each test was run once before it counted.' : 'No warm-up.'}`);
  }
}

function csvColumns(first: BenchRow): Column<BenchRow>[] {
  const keys = (Object.keys(first) as (keyof BenchRow)[]).filter((key) => key !== 'samples_ts');
  return keys.map((key) => ({ title: key, cell: (row) => String(row[key] ?? '') }));
}
