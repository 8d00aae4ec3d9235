import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';

// Runs the TypeScript snippets of every README as a stranger would: a file of its own, from the repository's root.
const root = fileURLToPath(new URL('..', import.meta.url));
const run = promisify(execFile);

const folders = ['packages', 'apps'].flatMap((group) =>
  readdirSync(`${root}${group}`).map((name) => `${group}/${name}`),
);

describe.each(folders)('%s/README.md', (folder) => {
  const path = `${root}${folder}/README.md`;
  const text = existsSync(path) ? readFileSync(path, 'utf8') : '';

  it('exists', () => expect(text).not.toBe(''));

  const snippets = [...text.matchAll(/^```ts\n(.*?)^```/gms)].map((match) => match[1]!);
  it.each(snippets.map((code, index) => [index, code] as const))('snippet %d runs', async (index, code) => {
    const dir = `${root}${folder}/.snippets`;
    mkdirSync(dir, { recursive: true });
    const file = `${dir}/${index}.mts`;
    writeFileSync(file, code);
    try {
      const args = ['--conditions=@dsla/source', '--import', 'tsx', file];
      await expect(run(process.execPath, args, { cwd: root })).resolves.toBeDefined();
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});
