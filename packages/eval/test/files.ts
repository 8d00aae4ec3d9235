import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../..', import.meta.url));

/** A small checkpoint that comes with the harness. */
export const embedded = (name: string): string => join(root, 'apps/harness/checkpoints', name);

/** Data that is not in the repository: beside it, or where DSLA_SHARED says. Undefined where it is not there. */
export function shared(path: string): string | undefined {
  const full = join(process.env.DSLA_SHARED ?? join(root, '../shared'), path);
  return existsSync(full) ? full : undefined;
}
