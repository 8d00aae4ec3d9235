import type { Readable, Writable } from 'node:stream';
import { createColors } from 'picocolors';

/** What a command may touch of the world. Data goes to `out`, everything else to `err`. */
export interface Io {
  readonly in: Readable & { readonly isTTY?: boolean };
  readonly out: Output;
  readonly err: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Fires at the first Ctrl-C. */
  readonly signal: AbortSignal;
}

export type Output = Writable & { readonly isTTY?: boolean; readonly columns?: number };

export type Colors = ReturnType<typeof createColors>;

/** NO_COLOR and FORCE_COLOR decide; otherwise colours are for terminals only. */
export function colorsFor(output: Output, env: Io['env']): Colors {
  if (env.NO_COLOR) return createColors(false);
  return createColors(Boolean(env.FORCE_COLOR) || (output.isTTY === true && env.TERM !== 'dumb'));
}

/** Writes a block of data and ends it with a newline. */
export function print(io: Io, text: string): void {
  io.out.write(text.endsWith('\n') ? text : `${text}\n`);
}

/** The single JSON object of a command run with --json. */
export function printJson(io: Io, value: unknown): void {
  print(io, JSON.stringify(value, null, 2));
}
