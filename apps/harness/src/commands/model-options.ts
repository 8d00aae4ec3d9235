import { type Device, DslaError } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { knownBackends, openNamed } from '../backends.js';
import {
  type Checkpoint,
  type Conversion,
  defaultConversion,
  embedded,
  inspect,
  type Mixer,
  mixers,
  openTuned,
  untuned,
} from '../checkpoint.js';
import { whole } from '../ui/options.js';
import { addDeviceOptions, type DeviceOptions, openOptions } from './device-options.js';

/** Options of every command that runs one model. */
export interface ModelOptions extends DeviceOptions {
  readonly model: string;
  readonly backend: string;
  readonly level: number;
  readonly mixer?: Mixer;
  readonly conversion?: string;
  readonly untuned?: true;
}

export const defaultBackend: string = Object.keys(knownBackends)[0]!;

export function addModelOptions(command: Command): Command {
  return addDeviceOptions(command)
    .option('-m, --model <folder>', 'Hugging Face folder', embedded('llama-4m'))
    .option('-b, --backend <name>', `${Object.keys(knownBackends).join(', ')}, or a package`, defaultBackend)
    .option('-l, --level <n>', 'layers to convert, in the order of order.json', whole(0), 0)
    .addOption(
      new Option(
        '--mixer <name>',
        "attention of the converted layers (default: the conversion's, or foldable)",
      ).choices(Object.keys(mixers)),
    )
    .option('--conversion <folder>', 'trained mixers (default: the embedded ones of the embedded Llama)')
    .option('--untuned', 'without trained mixers');
}

export interface Opening {
  readonly checkpoint: Checkpoint;
  readonly conversion: Conversion;
}

/**
 * Reads the descriptions of the checkpoint and of its conversion; nothing is loaded yet.
 * @throws DslaError E_IO, E_FORMAT; E_CONFIG for a conversion of another checkpoint, E_INPUT of another mixer
 */
export async function inspectOptions(options: ModelOptions, signal: AbortSignal): Promise<Opening> {
  const { model, mixer, level } = options;
  const checkpoint = await inspect(model);
  const usual = level > 0 && (mixer ?? 'foldable') === 'foldable' ? defaultConversion(model) : undefined;
  const folder = options.untuned ? undefined : (options.conversion ?? usual);
  if (folder === undefined) return { checkpoint, conversion: untuned(mixer ?? 'foldable', level) };
  const { checkpoint: ordered, tuned } = await openTuned(checkpoint, folder, signal);
  if (mixer !== undefined && mixer !== tuned.mixer) {
    throw new DslaError('E_INPUT', {
      where: folder,
      rule: `the conversion holds mixers of the form ${tuned.mixer}`,
      got: `--mixer ${mixer}`,
      cure: 'Leave --mixer out, or pass --untuned instead of a conversion.',
    });
  }
  return { checkpoint: ordered, conversion: { ...tuned, level } };
}

export function openDevice(options: ModelOptions, signal: AbortSignal): Promise<Device> {
  return openNamed(options.backend, openOptions(options.backend, options, signal));
}
