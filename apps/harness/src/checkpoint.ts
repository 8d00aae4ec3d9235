import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readConversion } from '@dsla/distill';
import { parseRecallFormat, type RecallFormat } from '@dsla/eval';
import {
  describe,
  type MixerOptions,
  type ModelConfig,
  type ModelDescription,
  type Plan,
  parseConfig,
  planAt,
  randomWeights,
  shapes,
} from '@dsla/models';
import {
  createModel,
  type LoadedModel,
  type LoadOptions,
  loadModel,
  loadNetwork,
  type Model,
  type TextModel,
} from '@dsla/runtime';
import { type Device, DslaError } from '@dsla/spec';
import { z } from 'zod';

export type Mixer = 'foldable' | 'window' | 'single' | 'published';

/** Attention that can take the place of softmax attention, by the names that `--mixer` takes. */
export const mixers: Readonly<Record<Mixer, MixerOptions>> = {
  /** Two states on the shared q, k, v, o, joined with an exact window. */
  foldable: { kind: 'dual' },
  /** The same window without states: needs no training. */
  window: { kind: 'window', size: 64, sinks: 4 },
  /** One state instead of two. */
  single: { kind: 'dual', states: 1 },
  /** As in the paper's code. */
  published: { kind: 'published' },
};

/** A Hugging Face folder, before anything of it is loaded. */
export interface Checkpoint {
  readonly folder: string;
  readonly name: string;
  readonly config: ModelConfig;
  readonly convertible: number;
  /** Layers in the order of conversion. */
  readonly order: readonly number[];
  /** Last layers of the order that carry recall; 0 where nobody has measured it. */
  readonly kept: number;
  /** Where the order comes from, for the report. */
  readonly orderOrigin: string;
  /** How facts are planted in text, for models that were trained on it. */
  readonly recallFormat: RecallFormat | undefined;
}

const orderSchema = z.object({
  /** Layers in the order of conversion, those that carry recall last. */
  order: z.array(z.int().nonnegative()),
  /** Number of layers at the end of the order that carry recall. */
  keep: z.int().nonnegative().default(0),
  origin: z.string().optional(),
});

/** Reads config.json and, where there are, order.json and recall.json (in the folder or the one above). @throws DslaError E_IO, E_FORMAT, E_CONFIG, E_UNSUPPORTED */
export async function inspect(folder: string): Promise<Checkpoint> {
  const config = parseConfig(await readJson(join(folder, 'config.json')));
  const { convertible } = describe(config);
  const file = join(folder, 'order.json');
  const base = {
    folder,
    name: basename(resolve(folder)),
    config,
    convertible,
    recallFormat: await readRecallFormat(folder),
  };
  if (!existsSync(file)) return { ...base, ...naturalOrder(convertible) };
  const parsed = orderSchema.safeParse(await readJson(file));
  if (!parsed.success) {
    throw new DslaError('E_FORMAT', {
      where: file,
      rule: z.prettifyError(parsed.error).replaceAll('\n', ' '),
      cure: 'It must hold "order", a list of layers, and may hold "keep", a count.',
    });
  }
  const { order, keep, origin } = parsed.data;
  return { ...base, order, kept: keep, orderOrigin: origin ?? 'order.json' };
}

function naturalOrder(convertible: number): Pick<Checkpoint, 'order' | 'kept' | 'orderOrigin'> {
  const order = Array.from({ length: convertible }, (_, layer) => layer);
  return { order, kept: 0, orderOrigin: 'bottom to top, nothing measured' };
}

async function readRecallFormat(folder: string): Promise<RecallFormat | undefined> {
  const file = [folder, join(folder, '..')].map((place) => join(place, 'recall.json')).find(existsSync);
  return file === undefined ? undefined : parseRecallFormat(await readJson(file));
}

/** What comes with this package: two checkpoints, and a conversion of the first. */
export function embedded(name: 'llama-4m' | 'zamba-4m' | 'llama-4m-dsla'): string {
  return fileURLToPath(new URL(`../checkpoints/${name}`, import.meta.url));
}

/** Another attention for some layers. */
export interface Conversion {
  /** What plans and weights call the mixer. */
  readonly mixer: string;
  readonly options: MixerOptions;
  /** Layers of the order that are converted. */
  readonly level: number;
  /** Folder with trained mixers. */
  readonly folder?: string | undefined;
}

/** Trained mixers that belong to a checkpoint. */
export interface Tuned extends Conversion {
  readonly folder: string;
}

/** A mixer at its start values. */
export function untuned(mixer: Mixer, level: number): Conversion {
  return { mixer, options: mixers[mixer], level };
}

/** The conversion that is meant where none is named. */
export function defaultConversion(model: string): string | undefined {
  return resolve(model) === embedded('llama-4m') ? embedded('llama-4m-dsla') : undefined;
}

/**
 * Reads a conversion that was made for a checkpoint; the checkpoint comes back in its order.
 * @throws DslaError E_IO, E_FORMAT; E_CONFIG when it was made for other weights
 */
export async function openTuned(
  checkpoint: Checkpoint,
  folder: string,
  signal: AbortSignal,
): Promise<{ readonly checkpoint: Checkpoint; readonly tuned: Tuned }> {
  const { mixer, order, level } = await readConversion(folder, checkpoint.folder, signal);
  const ordered = { order: order.order, kept: order.keep, orderOrigin: order.origin ?? basename(resolve(folder)) };
  return {
    checkpoint: { ...checkpoint, ...ordered },
    tuned: { mixer: mixer.name, options: mixer.options, level, folder },
  };
}

/** @throws DslaError E_INPUT for a level out of range or an order that is none */
export function planOf({ convertible, order }: Checkpoint, { mixer, level }: Conversion): Plan {
  return planAt(order, level, mixer, convertible);
}

/** Whether a converted layer is at its start values. */
export function hasUntuned({ order }: Checkpoint, { mixer, level }: Conversion, model: LoadedModel): boolean {
  const converted = order.slice(0, level).map((layer) => `layers.${layer}.${mixer}.`);
  return model.untuned.some((name) => converted.some((prefix) => name.startsWith(prefix)));
}

/** The tapes of a conversion. @throws DslaError E_UNSUPPORTED for a mixer that does not fit the model */
export function describeConversion({ config }: Checkpoint, { mixer, options, level }: Conversion): ModelDescription {
  return describe(config, { mixers: level === 0 ? {} : { [mixer]: options } });
}

export interface OpenOptions {
  readonly slots?: number;
  readonly context?: number;
  /** Most tokens of a sequence in one step. */
  readonly stepTokens?: number;
  readonly signal: AbortSignal;
}

/** Loads a checkpoint for the one plan of a conversion. */
export function openModel(
  checkpoint: Checkpoint,
  conversion: Conversion,
  device: Device,
  options: OpenOptions,
): Promise<TextModel> {
  return loadModel(checkpoint.folder, loadOptions(checkpoint, conversion, device, options));
}

/** The same without the tokenizer, for what needs no text. */
export function openNetwork(
  checkpoint: Checkpoint,
  conversion: Conversion,
  device: Device,
  options: OpenOptions,
): Promise<LoadedModel> {
  return loadNetwork(checkpoint.folder, loadOptions(checkpoint, conversion, device, options));
}

/** A known shape in the place of a folder: only random weights fit it. */
export function checkpointOf(shape: keyof typeof shapes): Checkpoint {
  const config = parseConfig(shapes[shape]);
  const { convertible } = describe(config);
  return { folder: shape, name: shape, config, convertible, ...naturalOrder(convertible), recallFormat: undefined };
}

/** A checkpoint's shape with random weights: for what does not depend on them. */
export function openSynthetic(
  checkpoint: Checkpoint,
  conversion: Conversion,
  device: Device,
  options: OpenOptions,
): Promise<Model> {
  const description = describeConversion(checkpoint, conversion);
  return createModel(description, randomWeights(description), {
    ...options,
    device,
    plan: planOf(checkpoint, conversion),
  });
}

function loadOptions(
  checkpoint: Checkpoint,
  conversion: Conversion,
  device: Device,
  options: OpenOptions,
): LoadOptions {
  const { mixer, options: form, level, folder } = conversion;
  const converted = level > 0;
  return {
    ...options,
    device,
    plan: planOf(checkpoint, conversion),
    mixers: converted ? { [mixer]: form } : {},
    conversion: converted ? folder : undefined,
  };
}

async function readJson(file: string): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    throw new DslaError('E_IO', {
      where: file,
      rule: `could not be read (${cause instanceof Error ? cause.message : String(cause)})`,
      cure: 'Name a Hugging Face model folder: config.json, model.safetensors, tokenizer.json.',
      cause,
    });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DslaError('E_FORMAT', { where: file, rule: 'must be JSON', cure: 'Download the file again.', cause });
  }
}
