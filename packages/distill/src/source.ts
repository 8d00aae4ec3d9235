import { createHash } from 'node:crypto';
import { open, readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { DslaError } from '@dsla/spec';

/** UTF-8 text as bytes that are read by ranges, so that a large one is never held. */
export interface TextSource {
  readonly name: string;
  readonly bytes: number;
  /** Bytes from (inclusive) to (exclusive), which must lie within the text. */
  read(from: number, to: number): Promise<Buffer>;
}

/** A text in memory. */
export function textSource(name: string, text: string): TextSource {
  const buffer = Buffer.from(text);
  return { name, bytes: buffer.length, read: async (from, to) => buffer.subarray(from, to) };
}

/** A file, or the .txt files of a folder one after the other, by name. @throws DslaError E_IO, E_INPUT for a folder without */
export async function openText(path: string): Promise<TextSource> {
  const files = await io(path, async () => {
    if (!(await stat(path)).isDirectory()) return [path];
    const names = (await readdir(path)).filter((name) => name.endsWith('.txt')).sort();
    return names.map((name) => join(path, name));
  });
  if (files.length === 0) {
    throw new DslaError('E_INPUT', { where: path, rule: 'must hold .txt files', got: 'none', cure: 'Name another.' });
  }
  const sizes = await io(path, () => Promise.all(files.map(async (file) => (await stat(file)).size)));
  return {
    name: basename(path),
    bytes: sizes.reduce((sum, size) => sum + size, 0),
    async read(from, to) {
      const pieces: Buffer[] = [];
      let begin = 0;
      for (const [index, file] of files.entries()) {
        const [low, high] = [Math.max(from, begin), Math.min(to, begin + sizes[index]!)];
        if (low < high) pieces.push(await readRange(file, low - begin, high - begin));
        begin += sizes[index]!;
      }
      return Buffer.concat(pieces);
    },
  };
}

/** The part of a text between two shares of its bytes, 0..1; parts that meet share nothing. */
export function partOf(source: TextSource, from: number, to: number): TextSource {
  const [begin, end] = [Math.floor(source.bytes * from), Math.floor(source.bytes * to)];
  return {
    name: `${source.name} ${from * 100}-${to * 100} %`,
    bytes: end - begin,
    read: (low, high) => source.read(begin + low, begin + high),
  };
}

/** Tells texts apart without reading them whole: hash of size, beginning, middle and end. */
export async function fingerprint(source: TextSource): Promise<string> {
  const piece = 2 ** 16;
  const hash = createHash('sha256').update(`${source.bytes} `);
  for (const from of [0, Math.floor(source.bytes / 2), Math.max(0, source.bytes - piece)]) {
    hash.update(await source.read(from, Math.min(source.bytes, from + piece)));
  }
  return hash.digest('hex');
}

async function readRange(file: string, from: number, to: number): Promise<Buffer> {
  return io(file, async () => {
    const handle = await open(file, 'r');
    try {
      const out = Buffer.alloc(to - from);
      for (let filled = 0; filled < out.length; ) {
        const { bytesRead } = await handle.read(out, filled, out.length - filled, from + filled);
        if (bytesRead === 0) throw new Error('it became shorter while it was read');
        filled += bytesRead;
      }
      return out;
    } finally {
      await handle.close();
    }
  });
}

async function io<T>(path: string, task: () => Promise<T>): Promise<T> {
  try {
    return await task();
  } catch (cause) {
    const rule = `could not be read (${cause instanceof Error ? cause.message : String(cause)})`;
    throw new DslaError('E_IO', { where: path, rule, cure: 'Name a text file, or a folder of .txt files.', cause });
  }
}
