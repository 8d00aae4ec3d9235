// Installs and builds with Node and npm alone: pnpm comes through npx at the version package.json names.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const { packageManager } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
const root = new URL('..', import.meta.url);

function run(args) {
  // Progress belongs on stderr: stdout is for results.
  const { status, error } = spawnSync('npx', ['--yes', packageManager, ...args], {
    cwd: root,
    stdio: ['ignore', 2, 2],
    env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip', TURBO_TELEMETRY_DISABLED: '1' },
  });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

run(['install', '--frozen-lockfile', '--reporter=append-only', '--loglevel=warn']);
run(['run', 'build']);
