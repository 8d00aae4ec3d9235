import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Mixers } from '@dsla/models';
import { describe as describeModel, parseConfig } from '@dsla/models';
import { elementCount } from '@dsla/spec';
import { checkpointWriter } from '@dsla/weights';
import { uniformFloat64 } from 'pure-rand/distribution/uniformFloat64';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import { goldenModel } from './files.js';
import { config, legacy } from './tokenizers.js';

export interface TemporaryFolder extends AsyncDisposable {
  readonly path: string;
}

/** A folder that goes when the test ends. */
export async function temporaryFolder(): Promise<TemporaryFolder> {
  const path = await mkdtemp(join(tmpdir(), 'dsla-runtime-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}

/** A golden model with a tokenizer of more tokens than it knows, which prompts in ids do not mind. */
export async function golden(name: string, files: Readonly<Record<string, unknown>> = {}): Promise<TemporaryFolder> {
  const folder = await temporaryFolder();
  await cp(goldenModel(name), folder.path, { recursive: true });
  const all = { 'tokenizer.json': legacy, 'tokenizer_config.json': config, ...files };
  for (const [file, content] of Object.entries(all)) {
    const text = typeof content === 'string' ? content : JSON.stringify(content);
    await writeFile(join(folder.path, file), text);
  }
  return folder;
}

/** A conversion of a golden model with random weights, so that nothing in it is zero or equal by chance. */
export async function randomConversion(name: string, mixers: Mixers, seed: number): Promise<TemporaryFolder> {
  const folder = await temporaryFolder();
  const json = JSON.parse(await readFile(join(goldenModel(name), 'config.json'), 'utf8'));
  const { weights } = describeModel(parseConfig(json), { mixers });
  const entries = Object.values(weights).filter(({ mixer }) => mixer !== undefined);
  const tensors = entries.map(({ tensors, shape, stored = shape }) => ({ name: tensors[0]!, shape: [...stored] }));
  const writer = await checkpointWriter(
    folder.path,
    tensors.map((tensor) => ({ ...tensor, storage: 'f32' as const })),
  );
  const random = xoroshiro128plus(seed);
  for (const tensor of tensors) {
    const values = Float32Array.from({ length: elementCount(tensor.shape) }, () => uniformFloat64(random) - 0.5);
    await writer.write(tensor.name, values);
  }
  await writer.finish();
  await writer[Symbol.asyncDispose]();
  return folder;
}
