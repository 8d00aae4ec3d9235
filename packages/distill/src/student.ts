import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { bindWeights, describe, type MixerOptions, type ModelDescription, parseConfig } from '@dsla/models';
import { createTokenizer, type Tokenizer } from '@dsla/runtime';
import {
  DslaError,
  type HostTensor,
  Scope,
  type TrainableLayer,
  type TrainingDevice,
  type Weight,
  type WeightSource,
} from '@dsla/spec';
import { openCheckpoint } from '@dsla/weights';
import { hashCheckpoint } from './hash.js';
import { modelTape } from './tapes.js';

/** A base model on a training device, and the present values of the mixer that is fitted to it. */
export interface Student extends AsyncDisposable {
  readonly device: TrainingDevice;
  readonly description: ModelDescription;
  readonly tokenizer: Tokenizer;
  readonly mixer: { readonly name: string; readonly options: MixerOptions };
  readonly base: Base;
  /** What a compiled tape reads: tuned values first, then the base and the untuned starts. */
  readonly weights: WeightSource;
  /** Tuned values by weight; written by whoever tunes, between compilations. */
  readonly tuned: Map<Weight, HostTensor>;
  /** ids to `logits` under the model's own attention; compiled once, it also keeps the base's weights on the device. */
  readonly teacher: TrainableLayer;
}

interface Base {
  readonly name: string;
  /** Of all its weight files. */
  readonly sha256: string;
}

export interface StudentOptions {
  readonly device: TrainingDevice;
  readonly mixer: { readonly name: string; readonly options: MixerOptions };
  readonly signal?: AbortSignal;
}

/**
 * Opens a Hugging Face folder for conversion. The device stays the caller's.
 * @throws DslaError E_IO, E_FORMAT, E_CONFIG, E_UNSUPPORTED; E_INPUT for a model without layers to convert
 */
export async function openStudent(folder: string, { device, mixer, signal }: StudentOptions): Promise<Student> {
  const config = parseConfig(await readJson(join(folder, 'config.json')));
  const description = describe(config, { mixers: { [mixer.name]: mixer.options } });
  if (description.convertible === 0) {
    const rule = 'the model must have layers whose attention can be exchanged';
    throw new DslaError('E_INPUT', { where: folder, rule, got: description.architecture });
  }
  const tokenizer = createTokenizer({
    tokenizer: await readJson(join(folder, 'tokenizer.json')),
    config: await readJson(join(folder, 'tokenizer_config.json'), {}),
    where: join(folder, 'tokenizer.json'),
  });
  const base = { name: description.architecture, sha256: await hashCheckpoint(folder, signal) };
  await using scope = new Scope();
  const checkpoint = scope.use(await openCheckpoint(folder, signal ? { signal } : {}));
  const bound = bindWeights(description, checkpoint);
  const tuned = new Map<Weight, HostTensor>();
  const weights: WeightSource = {
    spec: (name) => (tuned.has(name) ? { storage: 'f32', shape: tuned.get(name)!.shape } : bound.spec(name)),
    read: async (name, as) => (as === 'f32' && tuned.get(name)) || bound.read(name, as),
  };
  const plain = Array<string>(description.convertible).fill('default');
  const teacher = scope.use(await device.compileTrainable(modelTape(description, plain), weights, [], signal));
  const held = scope.move();
  return {
    device,
    description,
    tokenizer,
    mixer,
    base,
    weights,
    tuned,
    teacher,
    [Symbol.asyncDispose]: () => held[Symbol.asyncDispose](),
  };
}

async function readJson(path: string, otherwise?: unknown): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    if (otherwise !== undefined && (cause as NodeJS.ErrnoException).code === 'ENOENT') return otherwise;
    const damaged = cause instanceof SyntaxError;
    throw new DslaError(damaged ? 'E_FORMAT' : 'E_IO', {
      where: path,
      rule: damaged ? 'it must be JSON' : `could not be read (${(cause as Error).message})`,
      cure: 'Pass the folder of a Hugging Face checkpoint with its tokenizer.',
      cause,
    });
  }
}
