import { existsSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { MixerOptions, Mixers } from '@dsla/models';
import { type LayerOrder, parseOrder } from '@dsla/policy';
import { DslaError, type HostTensor, type Weight } from '@dsla/spec';
import { z } from 'zod';
import { hashCheckpoint } from './hash.js';
import { readTensors, writeTensors } from './tensors.js';

/** What a conversion file says about itself. */
export interface ConversionNote {
  readonly format: 'dsla-conversion';
  readonly version: 1;
  /** The checkpoint whose layers were converted: sha256 of its weight files (see hashCheckpoint). */
  readonly base: { readonly name: string; readonly sha256: string };
  readonly mixer: { readonly name: string; readonly options: MixerOptions };
  readonly order: LayerOrder;
  /** The first `level` layers of the order are tuned. */
  readonly level: number;
  /** How it was made and what was measured; free form. */
  readonly evidence: Readonly<Record<string, unknown>>;
}

/** A conversion that belongs to a base: what `loadModel` and `planAt` want. */
export interface Conversion extends ConversionNote {
  /** For `loadModel`'s `conversion`. */
  readonly folder: string;
  /** For `loadModel`'s `mixers`. */
  readonly mixers: Mixers;
}

const schema = z.object({
  format: z.literal('dsla-conversion'),
  version: z.literal(1),
  base: z.object({ name: z.string(), sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
  mixer: z.object({
    name: z.string(),
    // Its fields are checked where they are used, by `describe`.
    options: z.looseObject({ kind: z.enum(['dual', 'published', 'window']) }),
  }),
  order: z.unknown(),
  level: z.int().nonnegative(),
  evidence: z.record(z.string(), z.unknown()),
});

const weightsFile = 'model.safetensors';
const noteFile = 'conversion.json';

/**
 * Writes `model.safetensors` with the note in its header, so that both are replaced in one rename, and `conversion.json`, a
 * copy of the note for people and scripts.
 * @throws DslaError E_IO; what was there before stays whole
 */
export async function writeConversion(
  folder: string,
  note: ConversionNote,
  tuned: ReadonlyMap<Weight, HostTensor>,
): Promise<void> {
  await writeTensors(join(folder, weightsFile), tuned, note);
  const path = join(folder, noteFile);
  try {
    await writeFile(`${path}.partial`, `${JSON.stringify(note, null, 1)}\n`);
    await rename(`${path}.partial`, path);
  } catch (cause) {
    const rule = `the file system refused (${(cause as Error).message})`;
    throw new DslaError('E_IO', { where: path, rule, cure: 'Free some space, or choose another folder.', cause });
  }
}

/** Tuned values of a conversion. @throws DslaError E_IO, E_FORMAT when it is damaged */
export async function readTuned(folder: string): Promise<ReadonlyMap<Weight, HostTensor>> {
  return (await readTensors(join(folder, weightsFile))).tensors;
}

/**
 * Reads a conversion and checks that it was made for the checkpoint in `base`.
 * @throws DslaError E_IO when there is none, E_FORMAT when it is damaged or of another version, E_CONFIG for another base
 */
export async function readConversion(folder: string, base: string, signal?: AbortSignal): Promise<Conversion> {
  const path = join(folder, weightsFile);
  if (!existsSync(path)) {
    const rule = 'a conversion must hold this file';
    throw new DslaError('E_IO', { where: path, rule, cure: 'Make one: dsla distill.' });
  }
  const { note } = await readTensors(path);
  const parsed = schema.safeParse(note);
  if (!parsed.success) {
    const rule = `its note must be that of a conversion: ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`;
    throw new DslaError('E_FORMAT', { where: path, rule, cure: 'Make it again, with this version: dsla distill.' });
  }
  const { data } = parsed;
  const sha256 = await hashCheckpoint(base, signal);
  if (sha256 !== data.base.sha256) {
    throw new DslaError('E_CONFIG', {
      where: folder,
      rule: `the conversion was made for weights with sha256 ${data.base.sha256.slice(0, 12)} (${data.base.name}); those of ${base} have ${sha256.slice(0, 12)}`,
      cure: 'Use it with the checkpoint that it was made for, or make one for this checkpoint: dsla distill.',
    });
  }
  const mixer = data.mixer as ConversionNote['mixer'];
  const order = parseOrder(data.order, path);
  return { ...data, mixer, order, folder, mixers: { [mixer.name]: mixer.options } };
}
