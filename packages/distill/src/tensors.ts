import { createHash } from 'node:crypto';
import { DslaError, type HostTensor, isDslaError } from '@dsla/spec';
import { openCheckpoint, safetensorsWriter } from '@dsla/weights';

// A safetensors file with a JSON note in its header and a hash over its values: replaced in one rename, so that a kill or a
// full disk leaves the old one, and refused when damaged.

/** @throws DslaError E_IO; the file that was there before stays */
export async function writeTensors(
  path: string,
  tensors: ReadonlyMap<string, HostTensor>,
  note: unknown,
  signal?: AbortSignal,
): Promise<void> {
  const plans = [...tensors].map(([name, { shape }]) => ({ name, storage: 'f32' as const, shape }));
  const metadata = { note: JSON.stringify(note), sha256: digest(tensors) };
  await using writer = await safetensorsWriter(path, plans, { metadata, ...(signal && { signal }) });
  for (const [name, { data }] of tensors) await writer.write(name, data);
  await writer.finish();
}

/** @throws DslaError E_IO, E_FORMAT when it is damaged */
export async function readTensors(
  path: string,
): Promise<{ readonly tensors: Map<string, HostTensor>; readonly note: unknown }> {
  try {
    await using file = await openCheckpoint(path);
    const tensors = new Map<string, HostTensor>();
    for (const name of file.tensors.keys()) tensors.set(name, await file.readFloats(name, { as: 'f32' }));
    const { note, sha256 } = file.metadata;
    if (note === undefined || sha256 !== digest(tensors))
      throw damaged(path, 'its values must have the hash in its header');
    return { tensors, note: JSON.parse(note) };
  } catch (error) {
    if (error instanceof SyntaxError) throw damaged(path, 'its note must be JSON');
    if (isDslaError(error) && error.code === 'E_FORMAT') throw damaged(path, error.message);
    throw error;
  }
}

/** In the order of the names: a file may hold its tensors in another order than they were given. */
function digest(tensors: ReadonlyMap<string, HostTensor>): string {
  const hash = createHash('sha256');
  for (const [name, { shape, data }] of [...tensors].sort(([a], [b]) => (a < b ? -1 : 1))) {
    hash.update(`${name} [${shape}]`).update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return hash.digest('hex');
}

function damaged(path: string, rule: string): DslaError {
  const cure = 'It was damaged, or written by another program: delete it and start again.';
  return new DslaError('E_FORMAT', { where: path, rule, cure });
}
