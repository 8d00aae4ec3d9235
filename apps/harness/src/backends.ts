import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type AttentionBackend, type Device, DslaError, type OpenOptions, openBackend } from '@dsla/spec';

/** Something to install. */
export interface Requirement {
  readonly name: string;
  readonly version: string;
  /** How, as a sentence. */
  readonly install: string;
}

/** A kernel and the cut that was the fastest. */
export interface Tuning {
  readonly kernel: string;
  readonly chosen: string;
  /** By cut. */
  readonly milliseconds: Readonly<Record<string, number>>;
}

interface Known {
  readonly package: string;
  load(): Promise<Readonly<Record<string, unknown>>>;
  /** Packages whose versions decide what it can do. */
  readonly natives: readonly string[];
  /** What `--device` means to it: by name, the default first, or any name as the value of one option. */
  readonly devices: Readonly<Record<string, Readonly<Record<string, string>>>> | string;
  /** Ways to cut its kernels that were chosen for a device by timing them; `tuned` looks them up. */
  readonly tuning?: Readonly<Record<'tune' | 'tuned', (options: OpenOptions) => Promise<readonly Tuning[]>>>;
  /** What a device of it needs of the system, the whole list. */
  readonly requirements?: Readonly<Record<string, () => Promise<readonly Requirement[]>>>;
  /** Whether it has matrices in blocks of 8 and 4 bits. */
  readonly quantises: boolean;
}

/** Backends by the names that `--backend` takes; the first is the default. */
export const knownBackends: Readonly<Record<string, Known>> = {
  onnx: {
    package: '@dsla/backend-onnx',
    load: () => import('@dsla/backend-onnx'),
    natives: ['onnxruntime-node', 'koffi'],
    devices: { cpu: { device: 'cpu' }, cuda: { device: 'cuda' } },
    requirements: { cuda: async () => (await import('@dsla/backend-onnx')).cudaRequirements() },
    quantises: true,
  },
  webgpu: {
    package: '@dsla/backend-webgpu',
    load: () => import('@dsla/backend-webgpu'),
    natives: ['webgpu'],
    devices: { gpu: {}, software: { software: 'allow' } },
    tuning: {
      tune: async (options) => (await import('@dsla/backend-webgpu')).tune(options),
      tuned: async (options) => (await import('@dsla/backend-webgpu')).tuned(options),
    },
    quantises: true,
  },
  tfjs: {
    package: '@dsla/backend-tfjs',
    load: () => import('@dsla/backend-tfjs'),
    natives: ['@tensorflow/tfjs-core'],
    devices: 'engine',
    quantises: false,
  },
  reference: {
    package: '@dsla/reference',
    load: () => import('@dsla/reference'),
    natives: [],
    devices: { cpu: {} },
    quantises: false,
  },
};

/**
 * Imports a backend: a known name, or the package or file of a third party that exports an `AttentionBackend`.
 * @throws DslaError E_INPUT for an unknown name, E_UNAVAILABLE when the import fails.
 */
export async function importBackend(name: string): Promise<AttentionBackend> {
  const known = knownBackends[name];
  if (!known && !name.includes('/')) {
    throw new DslaError('E_INPUT', {
      where: '--backend',
      rule: `must be one of ${Object.keys(knownBackends).join(', ')}, or the package or file of another backend`,
      got: name,
      cure: 'Run `dsla doctor` to see which ones work here.',
    });
  }
  let exports: Readonly<Record<string, unknown>>;
  try {
    exports = await (known ? known.load() : import(locate(name)));
  } catch (cause) {
    throw new DslaError('E_UNAVAILABLE', {
      where: `backend ${name}`,
      rule: `could not be imported (${cause instanceof Error ? cause.message : String(cause)})`,
      cure: 'Install its package.',
      cause,
    });
  }
  const backend = Object.values(exports).find(isBackend);
  if (backend) return backend;
  throw new DslaError('E_UNAVAILABLE', {
    where: `backend ${name}`,
    rule: 'must export an AttentionBackend with specificationVersion 1',
    got: Object.keys(exports),
    cure: 'Use a version that fits this one.',
  });
}

/** @throws DslaError with every reason why it does not open. */
export async function openNamed(name: string, options: OpenOptions): Promise<Device> {
  return openBackend([await importBackend(name)], options);
}

/** What `extra` must hold for a device of a backend; of one that is not known here, `device`. @throws DslaError E_INPUT */
export function deviceSetting(backend: string, device: string): Readonly<Record<string, string>> {
  const { devices } = knownBackends[backend] ?? { devices: 'device' };
  if (typeof devices === 'string') return { [devices]: device };
  if (Object.hasOwn(devices, device)) return devices[device]!;
  throw new DslaError('E_INPUT', {
    where: '--device',
    rule: `the devices of ${backend} are ${Object.keys(devices).join(', ')}`,
    got: device,
    cure: 'Choose one of them, or another backend.',
  });
}

/** Devices of a backend that are asked one by one; undefined: the one that it opens by itself. Software is not asked for. */
export function devicesOf(backend: string): readonly (string | undefined)[] {
  const devices = knownBackends[backend]?.devices;
  const all = typeof devices === 'object' ? Object.keys(devices).filter((name) => name !== 'software') : [];
  return all.length > 1 ? all : [undefined];
}

/** Cuts of kernels chosen for the device of a backend; with `anew` after timing them. Undefined where it chooses none. */
export async function tuningOf(
  backend: string,
  anew: boolean,
  options: OpenOptions,
): Promise<readonly Tuning[] | undefined> {
  return await knownBackends[backend]?.tuning?.[anew ? 'tune' : 'tuned'](options);
}

/** What a device needs of the system, where that is known. */
export async function requirementsOf(
  backend: string,
  device: string | undefined,
): Promise<readonly Requirement[] | undefined> {
  return await knownBackends[backend]?.requirements?.[device ?? '']?.();
}

/** What `extra` must hold for matrices in blocks. @throws DslaError E_INPUT where a backend has none */
export function weightSetting(backend: string, weights: 'q8' | 'q4'): Readonly<Record<string, string>> {
  if (knownBackends[backend]?.quantises ?? true) return { weights };
  const able = Object.keys(knownBackends).filter((name) => knownBackends[name]!.quantises);
  throw new DslaError('E_INPUT', {
    where: '--weights',
    rule: `the backend must be one that has matrices in blocks: ${able.join(', ')}`,
    got: backend,
    cure: 'Leave --weights out, or choose another backend.',
  });
}

/** Versions of the packages of a backend, as installed; absent ones are left out. */
export function backendVersions(name: string): Record<string, string> {
  const known = knownBackends[name];
  if (!known) return {};
  const home = packageFolder(known.package, import.meta.url);
  if (!home) return {};
  const versions: Record<string, string> = { [known.package]: versionIn(home) };
  for (const native of known.natives) {
    const folder = packageFolder(native, join(home, 'package.json'));
    if (folder) versions[native] = versionIn(folder);
  }
  return versions;
}

// Third parties are looked up from the folder in which the command runs.
function locate(name: string): string {
  return pathToFileURL(createRequire(join(process.cwd(), 'package.json')).resolve(name)).href;
}

function packageFolder(name: string, from: string): string | undefined {
  const folders = (createRequire(from).resolve.paths(name) ?? []).map((path) => join(path, name));
  const folder = folders.find((candidate) => existsSync(join(candidate, 'package.json')));
  return folder && realpathSync(folder);
}

function versionIn(folder: string): string {
  return (JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string }).version;
}

function isBackend(value: unknown): value is AttentionBackend {
  return typeof value === 'object' && value !== null && (value as Partial<AttentionBackend>).specificationVersion === 1;
}
