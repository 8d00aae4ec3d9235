import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { compilerLibrary } from '../cuda/compile.js';
import { providerInstall, providerLibrary, requirementsOf } from './cuda-requirements.js';
import { containsText, neededLibraries } from './elf.js';

// ONNX Runtime looks for its providers beside its own library, and the provider for CUDA's libraries where the system looks.

export const mainLibrary = 'libonnxruntime.so.1';
const files = [mainLibrary, 'libonnxruntime_providers_shared.so', providerLibrary];

/** The CUDA runtime that the provider is linked with, or sentences about what is missing and what to install. */
export interface CudaFiles {
  readonly obstacles: readonly string[];
  readonly runtime: string;
}

const found = new Map<string, CudaFiles>();

/** `version`: of ONNX Runtime. What was found once is not looked for again. */
export async function findCuda(folder: string, version: string): Promise<CudaFiles> {
  const known = found.get(folder);
  if (known) return known;
  const files = await lookForCuda(folder, version);
  if (files.obstacles.length === 0) found.set(folder, files);
  return files;
}

async function lookForCuda(folder: string, version: string): Promise<CudaFiles> {
  const missing = files.filter((name) => !existsSync(join(folder, name)));
  if (missing.length > 0) return refused(`${folder} has no ${missing.join(', ')}. ${providerInstall(version)}`);
  const provider = join(folder, providerLibrary);
  if (!containsText(provider, version))
    return refused(`${provider} is not of ONNX Runtime ${version}. ${providerInstall(version)}`);
  const wanted = neededLibraries(provider).filter((name) => /^libcu/.test(name));
  const runtime = wanted.find((name) => name.startsWith('libcudart.so'));
  if (runtime === undefined) return refused(`${provider} is not linked with libcudart, the CUDA runtime`);
  const major = majorOf(runtime);
  const obstacles = [...(await unloadable(wanted, major)), ...(await cudnnObstacles(major))];
  return { obstacles: obstacles.length > 0 ? obstacles : await deviceObstacles(runtime), runtime };
}

/** CUDA's version, of the name of its runtime: libcudart.so.13. */
export function majorOf(runtime: string): number {
  return Number(runtime.split('.').at(-1));
}

const refused = (obstacle: string): CudaFiles => ({ obstacles: [obstacle], runtime: '' });

const lazyAndForever = 0x1001; // RTLD_LAZY | RTLD_NODELETE

/** The first of some libraries that the system loads, or why the last one does not load. */
async function loadable(names: readonly string[]): Promise<{ readonly name?: string; readonly reason: string }> {
  const { default: koffi } = await import('koffi');
  const libc = koffi.load('libc.so.6');
  const dlopen = libc.func('dlopen', 'void *', ['const char *', 'int']);
  const dlerror = libc.func('dlerror', 'const char *', []); // before it is needed: looking a function up clears the text
  const name = names.find((each) => dlopen(each, lazyAndForever));
  if (name !== undefined) return { name, reason: '' };
  return { reason: dlerror() };
}

/** Sentences about libraries that the system does not find. */
async function unloadable(names: readonly string[], major: number): Promise<string[]> {
  const known = requirementsOf(major);
  const sentences: string[] = [];
  for (const library of names) {
    const { name, reason } = await loadable([library]);
    if (name !== undefined) continue;
    const install = known.get(library.split('.')[0]!)?.install ?? 'Install the CUDA version that has it';
    sentences.push(`${library} does not load (${reason}). ${install}`);
  }
  return sentences;
}

/** Why operators of our own cannot be compiled, as a sentence. `major`: of CUDA. */
export async function compilerObstacle(major: number): Promise<string | undefined> {
  return (await unloadable([compilerLibrary(major)], major))[0];
}

/** The provider opens cuDNN when it first needs it, by the name without a version. */
async function cudnnObstacles(major: number): Promise<string[]> {
  const { install } = requirementsOf(major).get('libcudnn')!;
  const { name, reason } = await loadable(['libcudnn.so', 'libcudnn.so.9']);
  if (name === undefined) return [`cuDNN does not load (${reason}). ${install}`];
  const { default: koffi } = await import('koffi');
  const version = Number(koffi.load(name).func('cudnnGetVersion', 'size_t', [])());
  const told = version >= 90_000 ? Math.floor(version / 10_000) : Math.floor(version / 1000);
  return told >= 9 ? [] : [`cuDNN 9 is needed, ${name} is of version ${told}. ${install}`];
}

async function deviceObstacles(runtime: string): Promise<string[]> {
  const { default: koffi } = await import('koffi');
  const cuda = koffi.load(runtime);
  const count = new Int32Array(1);
  const status: number = cuda.func('cudaGetDeviceCount', 'int', ['void *'])(count);
  if (status === 0 && count[0]! > 0) return [];
  const text: string = status === 0 ? 'no device' : cuda.func('cudaGetErrorString', 'const char *', ['int'])(status);
  const { install } = requirementsOf(majorOf(runtime)).get('libcuda')!;
  return [`CUDA finds no device: ${text}. ${install}`];
}
