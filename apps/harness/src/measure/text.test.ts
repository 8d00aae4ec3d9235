import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { temporaryFolder } from '../../test/tiny.js';
import { readText } from './text.js';

it('reads Moby-Dick from its first chapter to its last', async () => {
  const { content, facts } = await readText(undefined);
  expect(content.slice(0, 60)).toMatch(/^CHAPTER 1\. Loomings\.\n\nCall me Ishmael\. /);
  expect(content.includes('\n\nCHAPTER 135. The Chase')).toBe(true);
  expect(facts.bytes).toBe(Buffer.from(content).length);
});

it('reads a file, with its digest', async () => {
  const folder = await temporaryFolder();
  await writeFile(join(folder, 'a.txt'), 'abc');
  expect((await readText(join(folder, 'a.txt'))).facts).toEqual({
    name: 'a.txt',
    bytes: 3,
    // FIPS 180-2, appendix B.1
    sha256: 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
  });
});

it('refuses missing and empty files', async () => {
  const folder = await temporaryFolder();
  await writeFile(join(folder, 'empty.txt'), ' \n');
  await expect(readText(join(folder, 'no.txt'))).rejects.toMatchObject({ code: 'E_IO' });
  await expect(readText(join(folder, 'empty.txt'))).rejects.toMatchObject({ code: 'E_INPUT' });
});
