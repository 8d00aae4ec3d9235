import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { PassThrough, Readable } from 'node:stream';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { run } from '../src/cli.js';

export interface Finished {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

export interface World {
  readonly stdin?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Both outputs are terminals. */
  readonly terminal?: boolean;
  readonly signal?: AbortSignal;
}

/** Runs the command line in this process. */
export async function dsla(args: readonly string[], world: World = {}): Promise<Finished> {
  const [out, err] = [output(world), output(world)];
  const code = await run(args, {
    in: Readable.from([world.stdin ?? '']),
    out: out.stream,
    err: err.stream,
    env: world.env ?? {},
    signal: world.signal ?? new AbortController().signal,
  });
  return { code, out: out.text(), err: err.text() };
}

function output({ terminal }: World): { stream: PassThrough; text: () => string } {
  const chunks: string[] = [];
  const stream = Object.assign(new PassThrough(), { isTTY: terminal === true, columns: 100 });
  stream.on('data', (chunk: Buffer) => chunks.push(String(chunk)));
  return { stream, text: () => chunks.join('') };
}

/** Runs it as a process of its own, from source. `onError` sees stderr as it comes and may send signals or close stdout. */
export function dslaProcess(
  args: readonly string[],
  onError: (text: string, child: ReturnType<typeof spawn>) => void = () => {},
): Promise<Finished> {
  const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
  const main = fileURLToPath(new URL('../src/main.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', tsx, '--conditions=@dsla/source', main, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, CI: '1' },
  });
  let [out, err] = ['', ''];
  child.stdout.on('data', (chunk) => {
    out += chunk;
  });
  child.stderr.on('data', (chunk) => {
    err += chunk;
    onError(err, child);
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, out, err }));
  });
}
