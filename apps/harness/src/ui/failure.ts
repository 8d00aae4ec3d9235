import { isDslaError } from '@dsla/spec';
import { CommanderError } from 'commander';
import { colorsFor, type Io } from './io.js';

const exitCodes = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** Prints one line `dsla: <message>` (with the stack if `verbose`) and returns the exit code. */
export function fail(error: unknown, io: Io, verbose: boolean): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done : exitCodes.usage;
  const colors = colorsFor(io.err, io.env);
  if (io.signal.aborted) {
    io.err.write(`${colors.red('dsla:')} interrupted. Nothing was left half-written.\n`);
    return exitCodes.interrupted;
  }
  const message = (error instanceof Error ? error.message : String(error)).replaceAll(/\s*\n\s*/g, ' ');
  const hint = isDslaError(error) || verbose ? '' : ' Run with --verbose for the stack.';
  io.err.write(`${colors.red('dsla:')} ${message}${hint}\n`);
  if (verbose && error instanceof Error) io.err.write(`${chain(error)}\n`);
  return isDslaError(error) && error.code === 'E_INPUT' ? exitCodes.usage : exitCodes.failed;
}

function chain(error: Error): string {
  const stack = error.stack ?? String(error);
  if (error.cause === undefined) return stack;
  return `${stack}\ncaused by ${error.cause instanceof Error ? chain(error.cause) : String(error.cause)}`;
}
