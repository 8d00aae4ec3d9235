import { performance } from 'node:perf_hooks';

/** How often to measure. */
export interface Rounds {
  readonly least: number;
  readonly most: number;
  /** On the clock of performance.now(), in milliseconds; Infinity for no limit. */
  readonly until: number;
}

/** Runs rounds, at least `least` of them, more while the next one is expected to end in time. Returns how many. */
export async function repeat({ least, most, until }: Rounds, round: (index: number) => Promise<void>): Promise<number> {
  let longest = 0;
  for (let index = 0; index < most; index++) {
    const started = performance.now();
    if (index >= least && started + longest > until) return index;
    await round(index);
    longest = Math.max(longest, performance.now() - started);
  }
  return most;
}
