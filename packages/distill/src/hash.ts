import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { DslaError } from '@dsla/spec';

/**
 * sha256 of the weights of a checkpoint: for every safetensors file of the folder by name, the sha256 of its bytes. Reads them
 * all (some 1-2 GB/s): only that tells a fine-tuned copy from its origin.
 * @throws DslaError E_IO
 */
export async function hashCheckpoint(folder: string, signal?: AbortSignal): Promise<string> {
  try {
    const names = (await readdir(folder)).filter((name) => /^model.*\.safetensors$/.test(name)).sort();
    const digests = await Promise.all(names.map((name) => hashFile(join(folder, name), signal)));
    if (digests.length === 1) return digests[0]!;
    return createHash('sha256').update(digests.join('\n')).digest('hex');
  } catch (cause) {
    const rule = `its weights could not be read (${cause instanceof Error ? cause.message : String(cause)})`;
    throw new DslaError(signal?.aborted ? 'E_ABORTED' : 'E_IO', {
      where: basename(folder),
      rule,
      cure: 'Pass the folder of a Hugging Face checkpoint.',
      cause,
    });
  }
}

async function hashFile(path: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  const stream = createReadStream(path, { highWaterMark: 2 ** 20, ...(signal && { signal }) });
  for await (const piece of stream) hash.update(piece as Buffer);
  return hash.digest('hex');
}
