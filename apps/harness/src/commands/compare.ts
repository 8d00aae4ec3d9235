import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { DslaError, throwIfAborted } from '@dsla/spec';
import { type Command, InvalidArgumentError } from 'commander';
import { importBackend, knownBackends } from '../backends.js';
import {
  type Checkpoint,
  defaultConversion,
  embedded,
  inspect,
  type Mixer,
  mixers,
  openTuned,
  type Tuned,
} from '../checkpoint.js';
import { compare } from '../compare/compare.js';
import { checkLevels, defaultLevels, lineUp } from '../compare/line-up.js';
import type { Rounds } from '../measure/repeat.js';
import { readText } from '../measure/text.js';
import { openFolder, writeFiles } from '../report/files.js';
import { renderHtml } from '../report/html.js';
import { renderReport } from '../report/table.js';
import { type Io, print, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions, names, whole, wholes } from '../ui/options.js';
import { openProgress } from '../ui/progress.js';
import { addDeviceOptions, type DeviceOptions, openOptions } from './device-options.js';
import { defaultBackend } from './model-options.js';

interface CompareOptions extends CommonOptions, DeviceOptions {
  readonly llama?: string;
  readonly zamba?: string;
  readonly conversion?: string;
  readonly untuned?: true;
  readonly levels?: readonly number[];
  readonly mixers: readonly Mixer[];
  readonly lengths?: readonly number[];
  readonly windows?: number;
  readonly recallWindows?: number;
  readonly rounds?: number;
  readonly backend: readonly string[];
  readonly text?: string;
  readonly seconds?: number;
  readonly out: string;
  readonly quick?: true;
}

export function addCompare(program: Command, io: Io): void {
  const command = program
    .command('compare')
    .description('softmax, Zamba, DSLA and its baselines: quality, speed, memory')
    .option('--llama <folder>', 'Hugging Face folder (default: the embedded one)')
    .option('--zamba <folder>', 'Hugging Face folder (default: the embedded one, without --llama)')
    .option('--conversion <folder>', 'trained mixers (default: the embedded ones of the embedded Llama)')
    .option('--untuned', 'without trained mixers')
    .option('--levels <n,...>', 'converted layers (default: quarters, and all but the recall layers)', wholes(1))
    .option('--mixers <names>', 'attention of the converted layers', mixerNames, Object.keys(mixers))
    .option('--lengths <n,...>', 'tokens (default: 512 to 4096 in doublings)', wholes(2))
    .option('--windows <n>', 'windows of text for bits per byte (default: 3 to 6)', whole(1))
    .option('--recall-windows <n>', 'windows of planted pairs for each distance', whole(1))
    .option('--rounds <n>', 'times that each speed is measured (default: 1 to 3)', whole(1))
    .option(
      '--seconds <n>',
      'fewer windows and rounds when time runs out (default: 75, no limit with --llama)',
      whole(1),
    )
    .option('-b, --backend <names>', `${Object.keys(knownBackends).join(', ')}, or packages`, names, [defaultBackend])
    .option('--text <file>', 'text to read (default: Moby-Dick)')
    .option('--quick', 'fewer lengths, windows and rounds')
    .option('-o, --out <folder>', 'where report.json and report.html go', 'dsla-report');
  addCommonOptions(addDeviceOptions(command)).action((options: CompareOptions) => runCompare(options, io));
}

async function runCompare(options: CompareOptions, io: Io): Promise<void> {
  const { signal } = io;
  await openFolder(options.out);
  for (const name of options.backend) await importBackend(name);
  const backends = new Map(options.backend.map((name) => [name, openOptions(name, options, signal)]));
  const { llama, zamba, tuned } = await checkpoints(options, signal);
  const levels = options.levels ?? defaultLevels(llama);
  checkLevels(levels, llama);
  const lengths = lengthsFor(options, zamba ? [llama, zamba] : [llama]);
  const text = await readText(options.text);
  using progress = openProgress(io, options.quiet === true);
  const started = performance.now();
  const time = 1000 * (options.seconds ?? (options.llama === undefined ? 75 : Number.POSITIVE_INFINITY));
  const report = await compare({
    entries: lineUp(llama, zamba, { levels, mixers: options.mixers, tuned }),
    backends,
    text,
    quality: {
      contexts: lengths,
      windows: rounds(options.windows, {
        least: options.quick ? 2 : 3,
        most: options.quick ? 2 : 6,
        until: started + 0.4 * time,
      }),
      recall: { windows: options.recallWindows ?? 1, until: started + 0.65 * time },
    },
    speed: {
      lengths,
      rounds: rounds(options.rounds, { least: 1, most: options.quick ? 1 : 3, until: started + time }),
      decodeTokens: options.quick ? 8 : 16,
    },
    command: ['dsla', ...process.argv.slice(2)],
    progress,
    signal,
  });
  const html = await renderHtml(report);
  throwIfAborted(signal, 'compare');
  await writeFiles(options.out, { 'report.json': `${JSON.stringify(report, null, 1)}\n`, 'report.html': html });
  if (options.json) printJson(io, report);
  else print(io, renderReport(io, report));
  progress.note(`Wrote ${join(options.out, 'report.json')} and ${join(options.out, 'report.html')}.`);
}

interface Compared {
  readonly llama: Checkpoint;
  readonly zamba: Checkpoint | undefined;
  readonly tuned: Tuned | undefined;
}

async function checkpoints(options: CompareOptions, signal: AbortSignal): Promise<Compared> {
  if (options.zamba !== undefined && options.llama === undefined) {
    throw new DslaError('E_INPUT', {
      where: '--zamba',
      rule: 'needs --llama: beside the embedded Llama it would be a comparison of sizes',
      cure: 'Name both folders.',
    });
  }
  const zamba = options.llama === undefined ? embedded('zamba-4m') : options.zamba;
  const folder = options.llama ?? embedded('llama-4m');
  const llama = await inspect(folder);
  const conversion = options.untuned ? undefined : (options.conversion ?? defaultConversion(folder));
  const { checkpoint, tuned } =
    conversion === undefined ? { checkpoint: llama, tuned: undefined } : await openTuned(llama, conversion, signal);
  return { llama: checkpoint, zamba: zamba === undefined ? undefined : await inspect(zamba), tuned };
}

/** @throws DslaError E_INPUT for a length beyond what a model was trained for */
function lengthsFor({ lengths, quick }: CompareOptions, models: readonly Checkpoint[]): readonly number[] {
  const context = Math.min(...models.map(({ config }) => config.context));
  if (lengths === undefined) {
    const longest = Math.min(context, quick ? 1024 : 4096);
    return [8, 4, 2, 1].map((share) => Math.floor(longest / share)).filter((length) => length > 1);
  }
  if (lengths.at(-1)! <= context) return lengths;
  throw new DslaError('E_INPUT', {
    where: '--lengths',
    rule: `must be at most ${context}, what the models were trained for`,
    got: lengths.at(-1),
    cure: 'Choose shorter ones.',
  });
}

/** A number that was asked for is kept, whatever the time. */
function rounds(asked: number | undefined, otherwise: Rounds): Rounds {
  return asked === undefined ? otherwise : { least: asked, most: asked, until: Number.POSITIVE_INFINITY };
}

function mixerNames(text: string): Mixer[] {
  return names(text).map((name) => {
    if (Object.hasOwn(mixers, name)) return name as Mixer;
    throw new InvalidArgumentError(`Allowed choices are ${Object.keys(mixers).join(', ')}.`);
  });
}
