import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { f32 } from '@dsla/spec';
import { beforeAll, describe, expect, it } from 'vitest';
import { temporaryFolder, tinyBase } from '../test/folders.js';
import { options } from '../test/tiny.js';
import { type ConversionNote, readConversion, writeConversion } from './conversion.js';
import { hashCheckpoint } from './hash.js';
import { writeTensors } from './tensors.js';

let base: string;
let note: ConversionNote;
const tuned = new Map([
  [
    'layers.0.foldable.mix',
    f32(
      [4, 2],
      Float32Array.from({ length: 8 }, (_, i) => i / 8),
    ),
  ],
]);

beforeAll(async () => {
  base = await tinyBase();
  note = {
    format: 'dsla-conversion',
    version: 1,
    base: { name: 'llama', sha256: await hashCheckpoint(base) },
    mixer: { name: 'foldable', options },
    order: { order: [0, 1], keep: 1 },
    level: 1,
    evidence: { levels: [] },
  };
});

describe('hashCheckpoint', () => {
  it('is the sha256 of a single file', async () => {
    // sha256sum packages/conformance/golden/models/llama-base/model.safetensors, as in the manifest.
    const manifest = await readFile(new URL('../../conformance/golden/manifest.json', import.meta.url), 'utf8');
    expect(manifest).toContain(await hashCheckpoint(base));
  });

  it('covers every shard', async () => {
    const sharded = await tinyBase('llama-sharded-bf16');
    const before = await hashCheckpoint(sharded);
    const last = join(sharded, 'model-00003-of-00003.safetensors');
    const bytes = await readFile(last);
    await writeFile(last, bytes.with(-1, bytes.at(-1)! ^ 1));
    expect(await hashCheckpoint(sharded)).not.toBe(before);
  });

  it('reports a folder that is not there, and an abort', async () => {
    await expect(hashCheckpoint('/nowhere')).rejects.toMatchObject({ code: 'E_IO' });
    await expect(hashCheckpoint(base, AbortSignal.abort())).rejects.toMatchObject({ code: 'E_ABORTED' });
  });
});

describe('a conversion', () => {
  it('comes back with what loadModel wants', async () => {
    const folder = await temporaryFolder();
    await writeConversion(folder, note, tuned);
    expect(await readConversion(folder, base)).toEqual({ ...note, folder, mixers: { foldable: options } });
    expect(JSON.parse(await readFile(join(folder, 'conversion.json'), 'utf8'))).toEqual(note);
  });

  it('refuses another base, though it differs in one bit', async () => {
    const folder = await temporaryFolder();
    await writeConversion(folder, note, tuned);
    const other = join(await temporaryFolder(), 'other');
    await cp(base, other, { recursive: true });
    const weights = join(other, 'model.safetensors');
    const bytes = await readFile(weights);
    await writeFile(weights, bytes.with(-1, bytes.at(-1)! ^ 1));
    await expect(readConversion(folder, other)).rejects.toMatchObject({
      code: 'E_CONFIG',
      message: expect.stringMatching(/was made for weights with sha256 \w{12} \(llama\); those of .*other have \w{12}/),
    });
  });

  it('refuses what is missing, damaged, of another version, or no conversion', async () => {
    const folder = await temporaryFolder();
    await expect(readConversion(folder, base)).rejects.toThrow(/must hold this file. Make one: dsla distill/);
    await expect(readConversion(base, base)).rejects.toMatchObject({ code: 'E_FORMAT' });
    const path = join(folder, 'model.safetensors');
    await writeTensors(path, tuned, { ...note, version: 2 });
    await expect(readConversion(folder, base)).rejects.toThrow(/version/);
    await writeTensors(path, tuned, { ...note, order: { order: [0, 0] } });
    await expect(readConversion(folder, base)).rejects.toThrow(/order: must hold each of the layers/);
    await writeConversion(folder, note, tuned);
    const bytes = await readFile(path);
    await writeFile(path, bytes.with(-2, bytes.at(-2)! ^ 4));
    await expect(readConversion(folder, base)).rejects.toThrow(/must have the hash in its header/);
  });
});
