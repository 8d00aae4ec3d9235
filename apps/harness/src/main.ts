#!/usr/bin/env node
import { constants } from 'node:os';
import { run } from './cli.js';

const interrupt = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.on(signal, () => {
    // The second one leaves at once.
    if (interrupt.signal.aborted) process.exit(128 + constants.signals[signal]);
    interrupt.abort(new Error(signal));
  });
}
// Whoever reads us has seen enough (dsla bench | head): no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

process.exitCode = await run(process.argv.slice(2), {
  in: process.stdin,
  out: process.stdout,
  err: process.stderr,
  env: process.env,
  signal: interrupt.signal,
});
