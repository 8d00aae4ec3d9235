import { openText, partOf, type TextSource, textSource } from '@dsla/distill';
import type { MixerOptions } from '@dsla/models';
import { DslaError, isTrainingDevice, openBackend, type TrainingDevice } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { embedded, type Mixer, mixers } from '../checkpoint.js';
import { readText } from '../measure/text.js';
import { whole } from '../ui/options.js';

/** Options of the commands that train. */
export interface TrainingOptions {
  readonly model: string;
  readonly mixer: Mixer;
  readonly outputRank?: number;
  readonly data?: string;
  readonly heldOut?: string;
  readonly engine?: string;
  readonly tokens?: number;
  readonly windows?: number;
  readonly steps?: number;
  readonly rows?: number;
  readonly seed: number;
}

export function addTrainingOptions(command: Command): Command {
  const trainable = Object.keys(mixers).filter((name) => name !== 'window'); // which has nothing to train
  return command
    .option('-m, --model <folder>', 'Hugging Face folder', embedded('llama-4m'))
    .addOption(new Option('--mixer <name>', 'attention to fit').choices(trainable).default('foldable'))
    .option('--output-rank <n>', 'rank of a change of the output projection, tuned too (default: none)', whole(0))
    .option('--data <path>', 'text file, or folder of .txt files')
    .option('--held-out <path>', 'text to judge on (default: the last tenth of the data)')
    .option('--engine <name>', 'of TensorFlow.js (default: the first that works)')
    .option('--tokens <n>', 'tokens of a window', whole(2))
    .option('--windows <n>', 'windows to judge on', whole(1))
    .option('--steps <n>', "steps of a layer's match", whole(0))
    .option('--rows <n>', 'windows of a step', whole(1))
    .option('--seed <n>', 'order of the data', whole(0), 0);
}

export interface Texts {
  readonly data: TextSource;
  readonly heldOut: TextSource;
}

/**
 * What to train and to judge on. Without --data, `own` shares of Moby-Dick: apart from each other, and from the windows that
 * `dsla compare` reads by default (a little from 0, 25, 50 and 75 % on).
 * @throws DslaError E_IO, E_INPUT
 */
export async function textsOf({ data, heldOut }: TrainingOptions, allowOwn: boolean): Promise<Texts> {
  if (data === undefined) {
    if (!allowOwn) {
      throw new DslaError('E_INPUT', {
        where: '--data',
        rule: 'must name the text to train on',
        cure: 'Pass a file or folder, or --quick for a short run on a part of Moby-Dick.',
      });
    }
    const { content } = await readText(undefined);
    const book = textSource('Moby-Dick', content);
    return { data: partOf(book, 0.05, 0.25), heldOut: heldOut ? await openText(heldOut) : partOf(book, 0.6, 0.7) };
  }
  const whole = await openText(data);
  if (heldOut !== undefined) return { data: whole, heldOut: await openText(heldOut) };
  return { data: partOf(whole, 0, 0.9), heldOut: partOf(whole, 0.9, 1) };
}

/** Opens TensorFlow.js, which only training needs. @throws DslaError E_UNAVAILABLE with every engine's reason */
export async function openTrainer(engine: string | undefined, signal: AbortSignal): Promise<TrainingDevice> {
  const { tfjsBackend } = await import('@dsla/backend-tfjs');
  const device = await openBackend([tfjsBackend], { signal, ...(engine !== undefined && { extra: { engine } }) });
  if (isTrainingDevice(device)) return device;
  await device[Symbol.asyncDispose]();
  throw new DslaError('E_UNSUPPORTED', { where: device.description, rule: 'the device must be able to train' });
}

/** @throws DslaError E_INPUT for a rank with the published form, whose own output projection is tuned whole */
export function mixerOf({ mixer, outputRank }: TrainingOptions): {
  readonly name: Mixer;
  readonly options: MixerOptions;
} {
  const options = mixers[mixer];
  if (outputRank === undefined) return { name: mixer, options };
  if (options.kind === 'dual') return { name: mixer, options: { ...options, outputRank } };
  throw new DslaError('E_INPUT', {
    where: '--output-rank',
    rule: `must be left out with --mixer ${mixer}, which tunes the whole output projection`,
    got: outputRank,
  });
}
