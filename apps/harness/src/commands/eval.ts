import {
  bitsPerByte,
  multipleChoice,
  type QuestionOptions,
  readQuestions,
  recall,
  type EvalOptions as ScoreOptions,
  type Summary,
} from '@dsla/eval';
import type { TextModel } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { type Checkpoint, hasUntuned, openModel } from '../checkpoint.js';
import { distancesOf } from '../compare/recall.js';
import { readText } from '../measure/text.js';
import { type Io, print, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions, whole, wholes } from '../ui/options.js';
import { openProgress } from '../ui/progress.js';
import { type Column, renderTable } from '../ui/table.js';
import { addModelOptions, inspectOptions, type ModelOptions, openDevice } from './model-options.js';

interface EvalOptions extends CommonOptions, ModelOptions, QuestionOptions {
  readonly task: keyof typeof tasks;
  readonly text?: string;
  readonly data?: string;
  readonly windowTokens?: number;
  readonly windowCharacters?: number;
  readonly lineBreaks?: 'single';
  readonly windows?: number;
  readonly limit?: number;
  readonly lengths?: readonly number[];
  readonly pairs: number;
  readonly seed: number;
  readonly batch: number;
}

/** One line of the answer. */
interface Result extends Summary {
  readonly metric: string;
}

type Task = (model: TextModel, checkpoint: Checkpoint, options: EvalOptions, score: ScoreOptions) => Promise<Result[]>;

const tasks = { bpb: runBits, choice: runChoice, recall: runRecall } satisfies Record<string, Task>;

export function addEval(program: Command, io: Io): void {
  const command = program
    .command('eval')
    .description('bits per byte, multiple choice, recall against distance')
    .addOption(new Option('--task <name>', 'what to measure').choices(Object.keys(tasks)).default('bpb'))
    .option('--text <file>', 'bpb, recall: text to read (default: Moby-Dick)')
    .option('--window-tokens <n>', 'bpb: tokens of a window (default: 512)', whole(2))
    .option('--window-characters <n>', 'bpb: characters of a window instead', whole(2))
    .addOption(
      new Option('--line-breaks <how>', 'bpb: single leaves out empty lines before encoding').choices(['single']),
    )
    .option('--windows <n>', 'bpb, recall: how many windows (recall: at each distance)', whole(1))
    .option('--data <file>', 'choice: questions as JSON lines, llm-foundry or BLiMP')
    .option('--delimiter <text>', 'choice: between a query and its choice (default: a space)')
    .option('--limit <n>', 'choice: only the first n questions', whole(1))
    .option('--lengths <n,...>', 'recall: window lengths in tokens (default: 512 up to the context)', wholes(64))
    .option('--pairs <n>', 'recall: planted pairs in a window', whole(1), 8)
    .option('--seed <n>', 'recall: the same seed asks the same questions', whole(0), 0)
    .option('--batch <n>', 'sequences run at once', whole(1), 4);
  addCommonOptions(addModelOptions(command)).action((options: EvalOptions) => runEval(options, io));
}

async function runEval(options: EvalOptions, io: Io): Promise<void> {
  const { signal } = io;
  const { checkpoint, conversion } = await inspectOptions(options, signal);
  using progress = openProgress(io, options.quiet === true);
  await using device = await openDevice(options, signal);
  await using model = await openModel(checkpoint, conversion, device, { slots: options.batch, signal });
  let last = Number.POSITIVE_INFINITY;
  let since = performance.now();
  const onProgress = (done: number, total: number) => {
    if (done <= last) progress.stage(options.task, total, since); // the first, or the next length of recall
    progress.to(done);
    last = done;
    if (done === total) since = performance.now();
  };
  const results = await tasks[options.task](model, checkpoint, options, { signal, onProgress });
  progress.end();
  const { level, mixer } = conversion;
  const about = {
    task: options.task,
    model: checkpoint.name,
    backend: device.description,
    mixer: level === 0 ? 'softmax' : mixer,
    level,
    layers: checkpoint.convertible,
    untuned: hasUntuned(checkpoint, conversion, model),
  };
  if (options.json) {
    printJson(io, { ...about, results });
    return;
  }
  const untuned = about.untuned ? ', untuned' : '';
  print(io, `${about.model}, ${about.mixer} ${level}/${about.layers}${untuned}, on ${about.backend}`);
  print(io, renderTable(io, columns, results));
  for (const protocol of new Set(results.map((result) => result.protocol))) print(io, `${protocol}.`);
}

const columns: readonly Column<Result>[] = [
  { title: 'metric', align: 'left', cell: ({ metric }) => metric },
  { title: 'value', cell: ({ value }) => value.toFixed(4) },
  {
    title: '95 % interval',
    cell: ({ interval: [low, high] }) => (Number.isNaN(low) ? '–' : `${low.toFixed(4)} to ${high.toFixed(4)}`), // of one window: none
  },
  { title: 'n', cell: ({ n }) => String(n) },
];

async function runBits(model: TextModel, _: Checkpoint, options: EvalOptions, score: ScoreOptions): Promise<Result[]> {
  const { windowTokens, windowCharacters, windows, lineBreaks } = options;
  if (windowTokens !== undefined && windowCharacters !== undefined) {
    refuse('--window-characters', 'cannot be combined with --window-tokens', 'Name one of them.');
  }
  const { content } = await readText(options.text);
  const window =
    windowCharacters === undefined ? { tokens: windowTokens ?? 512 } : { characters: windowCharacters, lineBreaks };
  return [{ metric: 'bits per byte', ...(await bitsPerByte(model, content, { ...score, window, windows })) }];
}

async function runChoice(
  model: TextModel,
  _: Checkpoint,
  options: EvalOptions,
  score: ScoreOptions,
): Promise<Result[]> {
  const { data, delimiter, limit } = options;
  if (data === undefined) return refuse('--data', 'is needed for multiple choice', 'Name a file of JSON lines.');
  const questions = await readQuestions(data, { delimiter });
  const { sum, perByte, perToken } = await multipleChoice(model, questions.slice(0, limit), score);
  return [
    { metric: 'accuracy', ...sum },
    { metric: 'accuracy, log-likelihood a byte', ...perByte },
    { metric: 'accuracy, log-likelihood a token', ...perToken },
  ];
}

async function runRecall(
  model: TextModel,
  { recallFormat: format, name }: Checkpoint,
  options: EvalOptions,
  score: ScoreOptions,
): Promise<Result[]> {
  if (!format) {
    return refuse(name, 'has no recall.json beside it', 'Recall needs a model that was trained on such passages.');
  }
  const lengths = options.lengths ?? [512, 1024, 2048, 4096].filter((length) => length <= model.context);
  const { content } = await readText(options.text);
  const text = model.tokenizer.encode(content.slice(0, 16 * lengths.at(-1)!), { bos: false });
  const { windows, pairs, seed, batch } = options;
  const results: Result[] = [];
  for (const { length, from, to } of distancesOf(lengths)) {
    const buckets = [[from, to + 1] as const];
    const [bucket] = await recall(model, text, { ...score, format, length, buckets, windows, pairs, seed, batch });
    results.push({ ...bucket!, metric: `recall at ${from} to ${to}` });
  }
  return results;
}

function refuse(where: string, rule: string, cure: string): never {
  throw new DslaError('E_INPUT', { where, rule, cure });
}
