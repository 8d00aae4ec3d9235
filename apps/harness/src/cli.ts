import { Command } from 'commander';
import { backendVersions, knownBackends } from './backends.js';
import { addBench } from './commands/bench.js';
import { addCompare } from './commands/compare.js';
import { addDistill } from './commands/distill.js';
import { addDoctor } from './commands/doctor.js';
import { addEval } from './commands/eval.js';
import { addGenerate } from './commands/generate.js';
import { addOrder } from './commands/order.js';
import { ownVersion } from './report/machine.js';
import { fail } from './ui/failure.js';
import type { Io } from './ui/io.js';

/** Runs the command line and returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted. */
export async function run(args: readonly string[], io: Io): Promise<number> {
  const program = new Command('dsla')
    .description('Pluggable attention for language models: compare, generate, bench, eval.')
    .version(versionText(), '-V, --version', 'print the versions of dsla, Node and the backends')
    .exitOverride()
    .showSuggestionAfterError()
    .configureHelp({ helpWidth: 80 })
    .configureOutput({
      writeOut: (text) => io.out.write(text),
      writeErr: (text) => io.err.write(text),
      outputError: (text, write) => write(`${oneLine(text)} See \`dsla --help\`.\n`),
    });
  for (const add of [addCompare, addGenerate, addBench, addEval, addOrder, addDistill, addDoctor]) add(program, io);
  try {
    await program.parseAsync(args, { from: 'user' });
    return 0;
  } catch (error) {
    return fail(error, io, args.includes('--verbose'));
  }
}

/** "error: unknown option '--x'\n(Did you mean --y?)" -> "dsla: unknown option '--x' (Did you mean --y?)". */
function oneLine(text: string): string {
  const line = text
    .trim()
    .replace(/^error: /, 'dsla: ')
    .replaceAll(/\s*\n\s*/g, ' ');
  return /[.?)]$/.test(line) ? line : `${line}.`;
}

function versionText(): string {
  const versions = Object.assign(
    { dsla: ownVersion, node: process.versions.node },
    ...Object.keys(knownBackends).map(backendVersions),
  );
  return Object.entries(versions)
    .map(([name, version]) => `${name} ${version}`)
    .join('\n');
}
