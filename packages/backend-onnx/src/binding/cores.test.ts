import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { cores } from './cores.js';

it('threads that share a core count as one', () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-cores-'));
  const says = (text: string): string => {
    writeFileSync(join(folder, text), `${text}\n`);
    return join(folder, text);
  };
  try {
    const threads = availableParallelism();
    expect([says('0'), join(folder, 'nothing'), says('1')].map(cores)).toEqual([
      threads,
      threads,
      Math.ceil(threads / 2),
    ]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
