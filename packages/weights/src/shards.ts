import { readFile, realpath, stat } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, resolve, sep } from 'node:path';
import { DslaError } from '@dsla/spec';
import { z } from 'zod';
import { io } from './io.js';
import { duplicateKey } from './json.js';

export const singleName = 'model.safetensors';
export const indexName = 'model.safetensors.index.json';

/** What a folder says about its files. */
export interface Shards {
  /** Real paths, in order of first mention. */
  readonly files: readonly string[];
  /** Tensor name to file, where there is an index. */
  readonly index?: ReadonlyMap<string, string>;
}

/**
 * Finds the files of a checkpoint. A path is one file, or a folder with `model.safetensors` or with the shards of
 * `model.safetensors.index.json`.
 * @throws DslaError E_IO, E_FORMAT
 */
export async function findShards(path: string): Promise<Shards> {
  const root = await io(path, () => realpath(path));
  if ((await io(root, () => stat(root))).isFile()) return { files: [root] };
  if (await exists(join(root, singleName))) return { files: [await inside(root, singleName, path)] };
  const indexPath = join(root, indexName);
  if (!(await exists(indexPath))) {
    throw new DslaError('E_IO', {
      where: path,
      rule: `a checkpoint must hold ${singleName} or ${indexName}`,
      got: 'neither',
      cure: 'Pass the folder that a Hugging Face model was downloaded to; .bin and .gguf files are not read.',
    });
  }
  const index = new Map<string, string>();
  const real = new Map<string, string>();
  for (const [tensor, file] of Object.entries(await readIndex(indexPath))) {
    if (!real.has(file)) real.set(file, await inside(root, file, indexPath));
    index.set(tensor, real.get(file)!);
  }
  return { files: [...new Set(real.values())], index };
}

const schema = z.object({ weight_map: z.record(z.string(), z.string()) });

async function readIndex(path: string): Promise<Record<string, string>> {
  const text = await io(path, () => readFile(path, 'utf8'));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new DslaError('E_FORMAT', { where: path, rule: 'it must be JSON', cure: 'Download it again.', cause });
  }
  const { success, data } = schema.safeParse(json);
  if (!success) damaged(path, 'weight_map must map tensor names to file names', text.slice(0, 40));
  const twice = duplicateKey(text);
  if (twice !== undefined) damaged(path, 'no name may stand twice', twice);
  return data.weight_map;
}

/** Real path of a file that the folder names; it may not lie elsewhere, since an index is data from strangers. */
async function inside(root: string, file: string, where: string): Promise<string> {
  const path = resolve(root, file);
  if (isAbsolute(file) || !path.startsWith(root + sep)) damaged(where, 'files must lie inside the folder', file);
  if (!(await exists(path))) {
    throw new DslaError('E_IO', {
      where,
      rule: 'it names a file that is missing',
      got: file,
      cure: 'Download it again.',
    });
  }
  const real = await io(path, () => realpath(path));
  if (!allowedRoots(root).some((allowed) => real.startsWith(allowed + sep))) {
    damaged(where, 'links must not lead out of the folder', `${file} -> ${real}`);
  }
  return real;
}

/** The hub's cache keeps `snapshots/<revision>` as links to `blobs` two folders up. */
function allowedRoots(root: string): string[] {
  const parent = dirname(root);
  return basename(parent) === 'snapshots' ? [root, join(dirname(parent), 'blobs')] : [root];
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    return io(path, () => Promise.reject(error));
  }
}

function damaged(where: string, rule: string, got: unknown): never {
  throw new DslaError('E_FORMAT', { where, rule, got, cure: 'Download it again from a source you trust.' });
}
