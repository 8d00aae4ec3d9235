import { execFile } from 'node:child_process';
import { arch, availableParallelism, cpus, platform, release, totalmem } from 'node:os';
import { promisify } from 'node:util';
import manifest from '../../package.json' with { type: 'json' };
import { backendVersions } from '../backends.js';
import type { Report } from './report.js';

/** Version of the `dsla` command. */
export const ownVersion: string = manifest.version;

/** What the numbers of a run depend on. */
export function machine(backends: readonly string[]): Report['machine'] {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    system: `${platform()} ${release()} ${arch()}`,
    node: process.version,
    packages: Object.assign({}, ...backends.map(backendVersions)),
  };
}

/** Commit of the working directory's repository, with "+" where tracked files differ from it; null outside of git. */
export async function commit(): Promise<string | null> {
  const git = async (...args: string[]) => (await promisify(execFile)('git', args)).stdout.trim();
  try {
    const head = await git('rev-parse', '--short=12', 'HEAD');
    return (await git('status', '--porcelain', '--untracked-files=no')) === '' ? head : `${head}+`;
  } catch {
    return null;
  }
}
