import { basename, dirname } from 'node:path';
import {
  foldableRecipe,
  openStudent,
  openWindows,
  orderAtRandom,
  orderByDepth,
  orderByEntropy,
  orderByKl,
  orderByRecall,
  orderGreedily,
  type SensitivityOptions,
  type Student,
} from '@dsla/distill';
import { recall } from '@dsla/eval';
import type { Plan } from '@dsla/models';
import type { LayerOrder } from '@dsla/policy';
import { createModel } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { type Checkpoint, inspect } from '../checkpoint.js';
import { openFolder, writeFiles } from '../report/files.js';
import { type Io, print, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions } from '../ui/options.js';
import { openProgress, type Progress } from '../ui/progress.js';
import { type Column, renderTable } from '../ui/table.js';
import { significant } from '../ui/units.js';
import { addTrainingOptions, mixerOf, openTrainer, type TrainingOptions, textsOf } from './training.js';

const metrics = ['kl', 'greedy', 'recall', 'entropy', 'depth', 'random'] as const;

interface OrderOptions extends CommonOptions, TrainingOptions {
  readonly metric: (typeof metrics)[number];
  readonly out: string;
}

export function addOrder(program: Command, io: Io): void {
  const command = program
    .command('order')
    .description('measure in which order layers should be converted')
    .addOption(new Option('--metric <name>', 'what to sort by').choices([...metrics]).default('kl'))
    .option('-o, --out <file>', 'where the order goes', 'order.json');
  addCommonOptions(addTrainingOptions(command)).action((options: OrderOptions) => runOrder(options, io));
}

async function runOrder(options: OrderOptions, io: Io): Promise<void> {
  const checkpoint = await inspect(options.model);
  await openFolder(dirname(options.out));
  const progress = openProgress(io, options.quiet === true);
  try {
    const order = await orderOf(options, checkpoint, progress, io.signal);
    progress.end();
    await writeFiles(dirname(options.out), { [basename(options.out)]: `${JSON.stringify(order, null, 1)}\n` });
    if (options.json) printJson(io, order);
    else {
      const rows = inOrder(order);
      if (rows.length > 0) print(io, renderTable(io, columnsOf(rows), rows));
      print(io, `${order.order.join(', ')}; the last ${order.keep} should stay. By ${order.metric}: ${order.origin}.`);
    }
    progress.note(`Wrote ${options.out}. Use it: dsla distill --order ${options.out}`);
  } finally {
    progress.end();
  }
}

async function orderOf(
  options: OrderOptions,
  checkpoint: Checkpoint,
  progress: Progress,
  signal: AbortSignal,
): Promise<LayerOrder> {
  const { metric, seed, rows = 1, steps = 20, tokens = 512, windows = 4 } = options;
  if (metric === 'depth') return orderByDepth(checkpoint.convertible);
  if (metric === 'random') return orderAtRandom(checkpoint.convertible, seed);
  const texts = await textsOf(options, true);
  await using device = await openTrainer(options.engine, signal);
  await using student = await openStudent(options.model, { device, mixer: mixerOf(options), signal });
  const { tokenizer } = student;
  const heldOut = await (await openWindows(texts.heldOut, tokenizer, { tokens, seed: 0 })).take(windows);
  const match = { ...foldableRecipe.match, steps, rows };
  const settings: SensitivityOptions = {
    recipe: { ...foldableRecipe, tokens, heldOut: windows, seed, match },
    windows: await openWindows(texts.data, tokenizer, { tokens, seed }),
    heldOut,
    signal,
    onProgress: stages(progress),
  };
  switch (metric) {
    case 'kl':
      return await orderByKl(student, settings);
    case 'greedy':
      return await orderGreedily(student, settings);
    case 'entropy':
      return await orderByEntropy(student, settings);
    case 'recall':
      return await orderByRecall(student, recallOf(student, checkpoint, heldOut, tokens, signal), settings);
  }
}

/** Share of planted pairs that a plan recalls from the farther half of a window. @throws DslaError E_INPUT */
function recallOf(
  student: Student,
  { recallFormat: format, folder }: Checkpoint,
  heldOut: Int32Array,
  tokens: number,
  signal: AbortSignal,
): (plan: Plan) => Promise<number> {
  if (!format) {
    throw new DslaError('E_INPUT', {
      where: folder,
      rule: 'recall can be measured only where a recall.json says how facts are planted',
      cure: 'Use --metric kl.',
    });
  }
  const text = Array.from(heldOut);
  return async (plan) => {
    const { device, description, weights } = student;
    await using model = await createModel(description, weights, { device, plan, context: tokens, signal });
    const far = [Math.floor(tokens / 2), tokens - 32] as const;
    const [bucket] = await recall(model, text, { format, length: tokens, buckets: [far], windows: 4, signal });
    return bucket!.value;
  };
}

/** Every run of counts is a stage. */
function stages(progress: Progress): NonNullable<SensitivityOptions['onProgress']> {
  return (done, total, what) => {
    if (done === 1) progress.stage(what.replace(/ ?(of )?layer.*/, '') || 'layers', total);
    progress.step(what);
  };
}

type Row = NonNullable<LayerOrder['evidence']>[number];

function inOrder({ order, evidence = [] }: LayerOrder): Row[] {
  return order.flatMap((layer) => evidence.find((row) => row.layer === layer) ?? []);
}

const number = (row: Row, key: string): string => {
  const value = row[key];
  return typeof value === 'number' ? significant(value) : '–';
};
/** What was measured for this order. */
function columnsOf(rows: readonly Row[]): Column<Row>[] {
  const keys = ['kl', 'entropy', 'low', 'high', 'recallLoss', 'misfitBefore', 'misfitAfter'];
  const measured = keys.filter((key) => rows.some((row) => typeof row[key] === 'number'));
  return ['layer', ...measured].map((key) => ({ title: key, cell: (row) => number(row, key) }));
}
