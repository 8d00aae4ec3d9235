import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';

/**
 * At least so many cores are this process's: two of the threads that the system offers may share one, of which then neither is free
 * while the other computes. `active`: where Linux says whether they do.
 */
export function cores(active: string = '/sys/devices/system/cpu/smt/active'): number {
  const threads = availableParallelism();
  const shared = existsSync(active) && readFileSync(active, 'utf8').trim() === '1';
  return shared ? Math.ceil(threads / 2) : threads;
}
