import { type Command, InvalidArgumentError } from 'commander';

/** Options that every command has. */
export interface CommonOptions {
  readonly json?: true;
  readonly quiet?: true;
  readonly verbose?: true;
}

export function addCommonOptions(command: Command): Command {
  return command
    .option('--json', 'print one JSON object on stdout and nothing else')
    .option('-q, --quiet', 'no progress on stderr')
    .option('--verbose', 'print the stack of an error');
}

/** A whole number of at least `least`, for commander. */
export function whole(least: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= least)) throw new InvalidArgumentError(`It must be a whole number of at least ${least}.`);
    return value;
  };
}

/** A number within [least, most]. */
export function within(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? Number.NaN : Number(text);
    if (!(value >= least && value <= most)) {
      throw new InvalidArgumentError(
        most === Number.POSITIVE_INFINITY
          ? `It must be a number of at least ${least}.`
          : `It must be a number from ${least} to ${most}.`,
      );
    }
    return value;
  };
}

/** Comma-separated whole numbers of at least `least`, ascending, each once. */
export function wholes(least: number): (text: string) => number[] {
  const one = whole(least);
  return (text) => [...new Set(text.split(',').map((part) => one(part.trim())))].sort((a, b) => a - b);
}

/** Comma-separated names. */
export function names(text: string): string[] {
  const list = text.split(',').map((part) => part.trim());
  if (list.some((name) => name === '')) throw new InvalidArgumentError('It must be names, separated by commas.');
  return [...new Set(list)];
}
