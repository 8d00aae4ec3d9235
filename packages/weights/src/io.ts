import { type FileHandle, open } from 'node:fs/promises';
import { DslaError, isDslaError } from '@dsla/spec';

const cures: Readonly<Record<string, string>> = {
  ENOENT: 'Check the path.',
  EACCES: 'Give this user permission, or choose another path.',
  EPERM: 'Give this user permission, or choose another path.',
  EROFS: 'Choose a path on a writable file system.',
  ENOSPC: 'Free some space, or choose another path.',
  EISDIR: 'A file is wanted here, not a folder.',
  ENOTDIR: 'A folder is wanted here, not a file.',
};

/** Runs a file operation; what the system refuses becomes E_IO with a cure. */
export async function io<T>(path: string, task: () => Promise<T>): Promise<T> {
  try {
    return await task();
  } catch (cause) {
    if (isDslaError(cause)) throw cause;
    const { code = 'unknown', message } = cause as NodeJS.ErrnoException;
    throw new DslaError('E_IO', {
      where: path,
      rule: `the file system refused (${message})`,
      cure: cures[code] ?? 'Check the disk.',
      cause,
    });
  }
}

/** Opens a file for reading and learns its size. @throws DslaError E_IO */
export async function openFile(path: string): Promise<{ handle: FileHandle; size: number }> {
  return io(path, async () => {
    const handle = await open(path, 'r');
    try {
      const stat = await handle.stat();
      if (!stat.isFile())
        throw new DslaError('E_IO', { where: path, rule: 'it must be a file', cure: 'Check the path.' });
      return { handle, size: stat.size };
    } catch (error) {
      await handle.close();
      throw error;
    }
  });
}

/** Fills `out` from byte `position` on. @throws DslaError E_IO; E_FORMAT when the file has become shorter. */
export async function readFully(handle: FileHandle, path: string, out: Uint8Array, position: number): Promise<void> {
  for (let filled = 0; filled < out.length; ) {
    const { bytesRead } = await io(path, () => handle.read(out, filled, out.length - filled, position + filled));
    if (bytesRead === 0) {
      const rule = `it was cut off while being read, at byte ${position + filled}`;
      throw new DslaError('E_FORMAT', { where: path, rule, cure: 'Do not change a checkpoint while it is in use.' });
    }
    filled += bytesRead;
  }
}
