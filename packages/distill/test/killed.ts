import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { onTestFinished } from 'vitest';

/**
 * Runs the chain of `child.ts` in a process of its own with `resume`, and kills it `pause` ms after so many steps. Returns
 * whether it came to its end.
 */
export async function killed(
  base: string,
  out: string,
  after: { readonly steps: number; readonly pause: number } | undefined,
  onStep: (key: string, loss: number) => void,
): Promise<boolean> {
  const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
  const script = fileURLToPath(new URL('./child.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', tsx, '--conditions=@dsla/source', script, base, out], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const closed = once(child, 'close');
  onTestFinished(async () => {
    child.kill('SIGKILL'); // a test that failed leaves nobody who writes
    await closed;
  });
  let steps = 0;
  createInterface(child.stdout).on('line', (line) => {
    const [key, loss] = JSON.parse(line) as [string, number];
    onStep(key, loss);
    if (++steps === after?.steps) setTimeout(() => child.kill('SIGKILL'), after.pause);
  });
  const [code, signal] = (await closed) as [number | null, string | null];
  if (code !== 0 && signal !== 'SIGKILL') throw new Error(`the child ended with ${code ?? signal}`);
  return code === 0;
}
