import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Traits } from './builder.js';
import { attentionCuts } from './kernels/flash-attention.js';
import { matrixShapes } from './kernels/linear-matrix.js';

// What was chosen for a device is kept in a file of the user's cache folder, by device, driver and version of this package.

/** One choice among ways to cut a kernel, as timed on a device. */
export interface Choice {
  /** Names the kernel. */
  readonly kernel: string;
  readonly chosen: string;
  /** Of every candidate. */
  readonly milliseconds: Readonly<Record<string, number>>;
}

interface Tunings {
  readonly version: 1;
  readonly devices: Readonly<Record<string, readonly Choice[]>>;
}

export const kernels = { product: 'linear-matrix', attention: 'tile-attention' } as const;

export function tuningFile(): string {
  const { XDG_CACHE_HOME, LOCALAPPDATA } = process.env;
  const own = process.platform === 'darwin' ? join(homedir(), 'Library', 'Caches') : join(homedir(), '.cache');
  const folder = process.platform === 'win32' ? (LOCALAPPDATA ?? own) : XDG_CACHE_HOME || own;
  return join(folder, 'dsla', 'webgpu.json');
}

/** Names an adapter with its driver, and the kernels it was asked about. */
export function deviceKey({ vendor, architecture, device, description }: GPUAdapterInfo): string {
  return [vendor, architecture, device, description, ownVersion()].join(' | ');
}

/** Of this package; a bundle has none. */
function ownVersion(): string {
  try {
    return JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version;
  } catch {
    return 'bundled';
  }
}

/** The choices for a device. A file that cannot be read as such is ignored, with a warning. */
export function readTuning(key: string, file: string = tuningFile()): readonly Choice[] {
  return read(file).devices[key] ?? [];
}

export function writeTuning(key: string, choices: readonly Choice[], file: string = tuningFile()): void {
  const all: Tunings = { version: 1, devices: { ...read(file).devices, [key]: choices } };
  mkdirSync(dirname(file), { recursive: true });
  const draft = `${file}.${process.pid}`;
  writeFileSync(draft, `${JSON.stringify(all, undefined, 2)}\n`);
  renameSync(draft, file);
}

/** What the choices mean for kernels; names of another time are ignored. */
export function tunedTraits(choices: readonly Choice[]): Pick<Traits, 'product' | 'attention'> {
  const chosen = (of: string) => choices.find(({ kernel }) => kernel === of)?.chosen ?? '';
  const product = matrixShapes[chosen(kernels.product)];
  const attention = attentionCuts[chosen(kernels.attention)];
  return { ...(product && { product }), ...(attention && { attention }) };
}

function read(file: string): Tunings {
  const none: Tunings = { version: 1, devices: {} };
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return none; // nobody has tuned yet
  }
  const found = parse(text);
  if (found) return found;
  process.emitWarning(
    `webgpu: ${file} must hold choices of tune(), as JSON of version 1. It is ignored; tune() replaces it.`,
  );
  return none;
}

function parse(text: string): Tunings | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isTunings(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isTunings(value: unknown): value is Tunings {
  if (!isRecord(value) || value.version !== 1 || !isRecord(value.devices)) return false;
  return Object.values(value.devices).every((list) => Array.isArray(list) && list.every(isChoice));
}

function isChoice(value: unknown): boolean {
  if (!isRecord(value) || !isRecord(value.milliseconds)) return false;
  const times = Object.values(value.milliseconds);
  return typeof value.kernel === 'string' && typeof value.chosen === 'string' && times.every(Number.isFinite);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
