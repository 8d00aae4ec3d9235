import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { bindWeights, describe, type Mixers, parseConfig } from '@dsla/models';
import { DslaError, Scope, throwIfAborted } from '@dsla/spec';
import { openCheckpoint } from '@dsla/weights';
import { type GenerationConfig, parseGenerationConfig } from './generation-config.js';
import { createModel, type Model, type ModelOptions } from './model.js';
import { createTokenizer, type Tokenizer } from './tokenizer.js';

/** A model from a folder, in token ids. */
export interface LoadedModel extends Model {
  /** Weights of mixers that no file holds: they start untuned. */
  readonly untuned: readonly string[];
  /** Tensors of the files that the model does not use. */
  readonly unexpected: readonly string[];
}

/** A model from a folder, with its texts. */
export interface TextModel extends LoadedModel {
  readonly tokenizer: Tokenizer;
  /** Ids that end a text. */
  readonly eos: readonly number[];
  /** How its makers sample; applied only where the caller passes it on. */
  readonly sampling: GenerationConfig['sampling'];
}

export interface LoadOptions extends ModelOptions {
  /** Mixers that plans may name. */
  readonly mixers?: Mixers | undefined;
  /** Safetensors file of trained mixers, or a folder with one; it goes before their untuned start. */
  readonly conversion?: string | undefined;
}

/**
 * Loads a Hugging Face folder: config.json, model.safetensors or shards, tokenizer.json, and where present
 * tokenizer_config.json and generation_config.json. When it fails or is aborted, nothing of it stays on the device.
 * @throws DslaError E_IO, E_FORMAT, E_CONFIG, E_UNSUPPORTED, E_INPUT, E_MEMORY, E_ABORTED
 */
export async function loadModel(folder: string, options: LoadOptions): Promise<TextModel> {
  const config = await readJson(folder, 'config.json');
  const tokenizer = createTokenizer({
    tokenizer: await readJson(folder, 'tokenizer.json'),
    config: await readJson(folder, 'tokenizer_config.json', {}),
    where: join(folder, 'tokenizer.json'),
  });
  const generation = await readJson(folder, 'generation_config.json', {});
  const { eos, sampling } = parseGenerationConfig(generation, config, tokenizer.eos, folder);
  return Object.assign(await loadNetwork(folder, options), { tokenizer, eos, sampling });
}

/** Loads a folder without its tokenizer: config.json and the weights. Errors as `loadModel`. */
export async function loadNetwork(folder: string, options: LoadOptions): Promise<LoadedModel> {
  const { signal, mixers = {}, conversion } = options;
  throwIfAborted(signal, folder);
  const description = describe(parseConfig(await readJson(folder, 'config.json')), { mixers });
  await using files = new Scope(); // closed once the weights are on the device
  const open = async (path: string) => files.use(await openCheckpoint(path, signal ? { signal } : {}));
  const weights = bindWeights(
    description,
    await open(folder),
    conversion === undefined ? undefined : await open(conversion),
  );
  const { untuned, unexpected } = weights;
  return Object.assign(await createModel(description, weights, options), { untuned, unexpected });
}

/** @throws DslaError E_IO when the file is missing (unless there is `otherwise`) or cannot be read, E_FORMAT when it is no JSON */
async function readJson(folder: string, name: string, otherwise?: unknown): Promise<unknown> {
  const where = join(folder, name);
  let text: string;
  try {
    text = await readFile(where, 'utf8');
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    if (missing && otherwise !== undefined) return otherwise;
    throw new DslaError('E_IO', {
      where,
      rule: missing ? 'a model folder must hold this file' : `it could not be read (${(cause as Error).message})`,
      cure: missing ? (cures[name] ?? 'Check the path.') : 'Check its permissions.',
      cause,
    });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new DslaError('E_FORMAT', {
      where,
      rule: `it must be JSON (${(cause as Error).message})`,
      cure: 'Download it again.',
      cause,
    });
  }
}

const cures: Readonly<Record<string, string>> = {
  'config.json': 'Pass the folder of a Hugging Face checkpoint.',
  'tokenizer.json':
    'Download it too; where a checkpoint has only tokenizer.model, transformers writes tokenizer.json (AutoTokenizer, then save_pretrained).',
};
