import { readFile } from 'node:fs/promises';
import {
  type ChainEvent,
  chain,
  foldableRecipe,
  type LevelResult,
  openStudent,
  publishedRecipe,
  type Recipe,
} from '@dsla/distill';
import { type LayerOrder, parseOrder } from '@dsla/policy';
import { DslaError } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { type Checkpoint, inspect } from '../checkpoint.js';
import { type Io, print, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions, whole, within } from '../ui/options.js';
import { openProgress, type Progress } from '../ui/progress.js';
import { type Column, renderTable } from '../ui/table.js';
import { formatSeconds, significant } from '../ui/units.js';
import { addTrainingOptions, mixerOf, openTrainer, type TrainingOptions, textsOf } from './training.js';

interface DistillOptions extends CommonOptions, TrainingOptions {
  readonly level?: number;
  readonly order?: string;
  readonly together: Recipe['together'];
  readonly logitSteps?: number;
  readonly rate?: number;
  readonly accumulate?: number;
  readonly resume?: true;
  readonly quick?: true;
  readonly out: string;
}

export function addDistill(program: Command, io: Io): void {
  const command = program
    .command('distill')
    .description('tune converted layers one after the other; writes a conversion')
    .option('-l, --level <n>', 'layers to convert (default: all but the recall layers)', whole(1))
    .option('--order <file>', "order.json to follow (default: the model's own)")
    .addOption(
      new Option('--together <how>', 'how layers meet').choices(['chained', 'independent', 'joint']).default('chained'),
    )
    .option('--logit-steps <n>', "steps of a layer's second stage, on the logits", whole(0))
    .option('--rate <x>', 'learning rate of the first stage', within(0, 1))
    .option('--accumulate <n>', 'times --rows before a step is taken', whole(1))
    .option('--resume', 'go on with the run in --out')
    .option('--quick', 'one layer in a few minutes on a CPU, on a part of Moby-Dick')
    .option('-o, --out <folder>', 'where the conversion goes', 'dsla-conversion');
  addCommonOptions(addTrainingOptions(command)).action((options: DistillOptions) => runDistill(options, io));
}

async function runDistill(options: DistillOptions, io: Io): Promise<void> {
  const { signal } = io;
  const checkpoint = await inspect(options.model);
  const order = await orderOf(options, checkpoint);
  const level = options.level ?? (options.quick ? 1 : order.order.length - order.keep);
  const texts = await textsOf(options, options.quick === true);
  const progress = openProgress(io, options.quiet === true);
  const started = performance.now();
  try {
    await using device = await openTrainer(options.engine, signal);
    await using student = await openStudent(options.model, { device, mixer: mixerOf(options), signal });
    progress.note(`${device.description}. Trains on ${texts.data.name}, judges on ${texts.heldOut.name}.`);
    const levels = await chain(student, {
      order,
      level,
      recipe: recipeOf(options),
      ...texts,
      out: options.out,
      resume: options.resume === true,
      signal,
      onProgress: reporter(progress),
    });
    progress.end();
    const seconds = (performance.now() - started) / 1000;
    if (options.json) printJson(io, { out: options.out, seconds, device: device.description, levels });
    else print(io, renderTable(io, columns, levels));
    progress.note(
      `Wrote ${options.out} in ${formatSeconds(seconds)}. Use it: dsla compare --conversion ${options.out}`,
    );
  } finally {
    progress.end();
  }
}

function recipeOf(options: DistillOptions): Recipe {
  const base = options.mixer === 'published' ? publishedRecipe : foldableRecipe;
  const quick = options.quick === true;
  const { steps = quick ? 60 : base.match.steps, rows = quick ? 1 : base.match.rows, rate, accumulate = 1 } = options;
  const batch = { rows, accumulate };
  return {
    ...base,
    match: { ...base.match, ...batch, steps, ...(rate !== undefined && { rate }) },
    logits: { ...base.logits, ...batch, steps: options.logitSteps ?? (quick ? 0 : base.logits.steps) },
    together: options.together,
    tokens: options.tokens ?? (quick ? 512 : base.tokens),
    heldOut: options.windows ?? (quick ? 4 : base.heldOut),
    checkEvery: quick ? 20 : base.checkEvery,
    seed: options.seed,
  };
}

async function orderOf({ order: file }: DistillOptions, checkpoint: Checkpoint): Promise<LayerOrder> {
  const { order, kept, orderOrigin, convertible } = checkpoint;
  if (file === undefined) return { order, keep: kept, origin: orderOrigin };
  let content: unknown;
  try {
    content = JSON.parse(await readFile(file, 'utf8'));
  } catch (cause) {
    const rule = `could not be read (${cause instanceof Error ? cause.message : String(cause)})`;
    throw new DslaError(cause instanceof SyntaxError ? 'E_FORMAT' : 'E_IO', {
      where: file,
      rule,
      cure: 'Measure one: dsla order.',
      cause,
    });
  }
  return parseOrder(content, file, convertible);
}

/** A bar a stage with loss and time left; a line a level. */
function reporter(progress: Progress): (event: ChainEvent) => void {
  let task = '';
  return (event) => {
    if (event.kind === 'step') {
      if (event.task !== task) progress.stage(event.task, event.steps - event.step + 1);
      task = event.task;
      progress.step(`loss ${significant(event.loss)}, ${formatSeconds(event.secondsLeft)} left in all`);
    } else if (event.kind === 'task') {
      progress.end();
      progress.note(`${event.task}: misfit ${significant(event.before)} -> ${significant(event.after)}`);
    } else {
      const { level, kl, untuned } = event.result;
      const before = untuned ? `${significant(untuned.value)} -> ` : '';
      progress.note(`level ${level}: KL from the teacher ${before}${significant(kl.value)} nats a token`);
    }
  };
}

const columns: readonly Column<LevelResult>[] = [
  { title: 'level', cell: ({ level }) => String(level) },
  { title: 'layer', cell: ({ layer }) => String(layer) },
  { title: 'misfit untuned', cell: ({ misfits }) => significant(misfits[0]?.before ?? Number.NaN) },
  { title: 'tuned', cell: ({ misfits }) => significant(misfits[0]?.after ?? Number.NaN) },
  { title: 'KL untuned', cell: ({ untuned }) => (untuned ? significant(untuned.value) : '–') },
  { title: 'KL tuned', cell: ({ kl }) => significant(kl.value) },
  { title: 'nats lost', cell: ({ excess }) => significant(excess.value) },
  { title: '95 % interval', cell: ({ excess: { low, high } }) => [low, high].map(bound).join(' to ') },
];

const bound = (value: number | null): string => (value === null ? '–' : significant(value));
