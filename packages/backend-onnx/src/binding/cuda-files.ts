import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { containsText, neededLibraries } from './elf.js';

// ONNX Runtime looks for its providers beside its own library, and the provider for CUDA's libraries where the system looks.

/** Names a folder that holds ONNX Runtime's library and its CUDA provider; without it they lie in onnxruntime-node. */
export const folderVariable = 'DSLA_ONNX_CUDA';

export const mainLibrary = 'libonnxruntime.so.1';
const providerLibrary = 'libonnxruntime_providers_cuda.so';
const files = [mainLibrary, 'libonnxruntime_providers_shared.so', providerLibrary];

/** The CUDA runtime that the provider is linked with, or sentences about what is missing. */
export interface CudaFiles {
  readonly obstacles: readonly string[];
  readonly runtime: string;
}

/** `version`: of ONNX Runtime. */
export async function findCuda(folder: string, version: string): Promise<CudaFiles> {
  const missing = files.filter((name) => !existsSync(join(folder, name)));
  if (missing.length > 0)
    return refused(
      `${folder} has no ${missing.join(', ')}; put ONNX Runtime ${version}'s files there, or name a folder that has all of ` +
        `${files.join(', ')} in the environment variable ${folderVariable}`,
    );
  const provider = join(folder, providerLibrary);
  if (!containsText(provider, version))
    return refused(`${provider} is not of ONNX Runtime ${version}; install the CUDA provider of that version`);
  const wanted = neededLibraries(provider).filter((name) => /^libcu/.test(name));
  const runtime = wanted.find((name) => name.startsWith('libcudart.so'));
  if (runtime === undefined) return refused(`${provider} is not linked with libcudart, the CUDA runtime`);
  const obstacles = await unloadable(wanted);
  return { obstacles: obstacles.length > 0 ? obstacles : await deviceObstacles(runtime), runtime };
}

const refused = (obstacle: string): CudaFiles => ({ obstacles: [obstacle], runtime: '' });

/** Sentences about libraries that the system does not find. */
async function unloadable(names: readonly string[]): Promise<string[]> {
  const { default: koffi } = await import('koffi');
  const libc = koffi.load('libc.so.6');
  const dlopen = libc.func('dlopen', 'void *', ['const char *', 'int']);
  const dlerror = libc.func('dlerror', 'const char *', []);
  const lazyAndForever = 0x1001; // RTLD_LAZY | RTLD_NODELETE
  return names.flatMap((name) => {
    if (dlopen(name, lazyAndForever)) return [];
    const cure = name.startsWith('libcuda.so')
      ? "install NVIDIA's driver"
      : 'install that version of CUDA and name the folder of its libraries in LD_LIBRARY_PATH';
    return [`${name} does not load (${dlerror()}); ${cure}`];
  });
}

async function deviceObstacles(runtime: string): Promise<string[]> {
  const { default: koffi } = await import('koffi');
  const cuda = koffi.load(runtime);
  const count = new Int32Array(1);
  const status: number = cuda.func('cudaGetDeviceCount', 'int', ['void *'])(count);
  if (status === 0 && count[0]! > 0) return [];
  const text: string = status === 0 ? 'no device' : cuda.func('cudaGetErrorString', 'const char *', ['int'])(status);
  return [`CUDA finds no device: ${text}`];
}
