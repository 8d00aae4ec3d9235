import { constants } from 'node:fs';
import { access, mkdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DslaError } from '@dsla/spec';

/**
 * Makes the folder and proves that it can be written, before any work is done for it.
 * @throws DslaError E_IO
 */
export async function openFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
    if (!(await stat(folder)).isDirectory()) throw new Error('not a directory');
    await access(folder, constants.W_OK);
  } catch (cause) {
    throw new DslaError('E_IO', {
      where: `--out ${folder}`,
      rule: `must be a folder that can be written (${cause instanceof Error ? cause.message : String(cause)})`,
      cure: 'Choose another one with --out.',
      cause,
    });
  }
}

/** Writes all files or none: under temporary names first, renamed when every one is complete. */
export async function writeFiles(folder: string, files: Readonly<Record<string, string>>): Promise<void> {
  const names = Object.entries(files).map(([name, content]) => ({
    temporary: join(folder, `.${name}.${process.pid}.tmp`),
    final: join(folder, name),
    content,
  }));
  try {
    for (const { temporary, content } of names) await writeFile(temporary, content);
    for (const { temporary, final } of names) await rename(temporary, final);
  } catch (cause) {
    throw new DslaError('E_IO', {
      where: folder,
      rule: `could not be written (${cause instanceof Error ? cause.message : String(cause)})`,
      cure: 'Free space or choose another folder with --out.',
      cause,
    });
  } finally {
    for (const { temporary } of names) await rm(temporary, { force: true });
  }
}
