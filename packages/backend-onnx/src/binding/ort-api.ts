import { DslaError } from '@dsla/spec';
import type { TypeObject } from 'koffi';
import { type HostBlock, hostBlock } from './block.js';
import { PagedSpace, type Space } from './space.js';

// The functions of ONNX Runtime's C API that are used, by their slot in OrtApi (onnxruntime_c_api.h, API 23 to 29: the table
// only ever grows at its end).

const P = 'void *';
const S = 'const char *';
/** A list of strings. */
const L = 'const char **';
const I = 'int';
const Z = 'size_t';
const V = 'void';
/** A handle. */
const H = 'handle';

const table: Readonly<Record<OrtFunction, readonly [slot: number, result: string, args: readonly string[]]>> = {
  GetErrorCode: [1, I, [P]],
  GetErrorMessage: [2, S, [P]],
  ReleaseStatus: [93, V, [P]],
  CreateEnvWithGlobalThreadPools: [119, P, [I, S, H, P]],
  CreateThreadingOptions: [121, P, [P]],
  ReleaseThreadingOptions: [122, V, [H]],
  SetGlobalIntraOpNumThreads: [147, P, [H, I]],
  CreateAndRegisterAllocator: [144, P, [H, H, P]],
  CreateSessionOptions: [10, P, [P]],
  EnableProfiling: [14, P, [H, S]],
  SetSessionGraphOptimizationLevel: [23, P, [H, I]],
  SetIntraOpNumThreads: [24, P, [H, I]],
  DisablePerSessionThreads: [120, P, [H]],
  AddSessionConfigEntry: [130, P, [H, S, S]],
  CreateMemoryInfo: [68, P, [S, I, I, I, P]],
  CreateCpuMemoryInfo: [69, P, [I, I, P]],
  CreateTensorWithDataAsOrtValue: [49, P, [H, P, Z, P, Z, I, P]],
  RunWithBinding: [133, P, [H, P, H]],
  CreateIoBinding: [134, P, [H, P]],
  BindInput: [136, P, [H, S, H]],
  BindOutput: [137, P, [H, S, H]],
  AddInitializer: [150, P, [H, S, H]],
  CreatePrepackedWeightsContainer: [166, P, [P]],
  ReleasePrepackedWeightsContainer: [167, V, [H]],
  CreateSessionFromArrayWithPrepackedWeightsContainer: [169, P, [H, P, Z, H, H, P]],
  ReleaseSession: [95, V, [H]],
  CreateRunOptions: [39, P, [P]],
  AddRunConfigEntry: [165, P, [H, S, S]],
  ReleaseRunOptions: [97, V, [H]],
  CreateArenaCfg: [156, P, [Z, I, I, I, P]],
  ReleaseArenaCfg: [157, V, [H]],
  CreateAndRegisterAllocatorV2: [259, P, [H, S, H, H, L, L, Z]],
  SessionOptionsAppendExecutionProvider_CUDA_V2: [204, P, [H, H]],
  CreateCUDAProviderOptions: [205, P, [P]],
  UpdateCUDAProviderOptions: [206, P, [H, L, L, Z]],
  ReleaseCUDAProviderOptions: [208, V, [H]],
  ReleaseValue: [96, V, [H]],
  ReleaseSessionOptions: [100, V, [H]],
  ReleaseIoBinding: [135, V, [H]],
  CreateCustomOpDomain: [26, P, [S, P]],
  CustomOpDomain_Add: [27, P, [H, H]],
  AddCustomOpDomain: [28, P, [H, H]],
  ReleaseCustomOpDomain: [101, V, [H]],
  CreateStatus: [0, P, [I, S]],
  KernelContext_GetInput: [90, P, [H, Z, P]],
  KernelContext_GetOutput: [91, P, [H, Z, P, Z, P]],
  GetTensorMutableData: [51, P, [H, P]],
  GetTensorTypeAndShape: [65, P, [H, P]],
  GetDimensionsCount: [61, P, [H, P]],
  GetDimensions: [62, P, [H, P, Z]],
  ReleaseTensorTypeAndShapeInfo: [99, V, [H]],
};

type OrtFunction =
  | 'GetErrorCode'
  | 'GetErrorMessage'
  | 'ReleaseStatus'
  | 'CreateEnvWithGlobalThreadPools'
  | 'CreateThreadingOptions'
  | 'ReleaseThreadingOptions'
  | 'SetGlobalIntraOpNumThreads'
  | 'CreateAndRegisterAllocator'
  | 'CreateSessionOptions'
  | 'EnableProfiling'
  | 'SetSessionGraphOptimizationLevel'
  | 'SetIntraOpNumThreads'
  | 'DisablePerSessionThreads'
  | 'AddSessionConfigEntry'
  | 'CreateMemoryInfo'
  | 'CreateCpuMemoryInfo'
  | 'CreateTensorWithDataAsOrtValue'
  | 'RunWithBinding'
  | 'CreateIoBinding'
  | 'BindInput'
  | 'BindOutput'
  | 'AddInitializer'
  | 'CreatePrepackedWeightsContainer'
  | 'ReleasePrepackedWeightsContainer'
  | 'CreateSessionFromArrayWithPrepackedWeightsContainer'
  | 'ReleaseSession'
  | 'CreateRunOptions'
  | 'AddRunConfigEntry'
  | 'ReleaseRunOptions'
  | 'CreateArenaCfg'
  | 'ReleaseArenaCfg'
  | 'CreateAndRegisterAllocatorV2'
  | 'SessionOptionsAppendExecutionProvider_CUDA_V2'
  | 'CreateCUDAProviderOptions'
  | 'UpdateCUDAProviderOptions'
  | 'ReleaseCUDAProviderOptions'
  | 'ReleaseValue'
  | 'ReleaseSessionOptions'
  | 'ReleaseIoBinding'
  | 'CreateCustomOpDomain'
  | 'CustomOpDomain_Add'
  | 'AddCustomOpDomain'
  | 'ReleaseCustomOpDomain'
  | 'CreateStatus'
  | 'KernelContext_GetInput'
  | 'KernelContext_GetOutput'
  | 'GetTensorMutableData'
  | 'GetTensorTypeAndShape'
  | 'GetDimensionsCount'
  | 'GetDimensions'
  | 'ReleaseTensorTypeAndShapeInfo';
export type Handle = bigint;

/** What telling operators of our own takes (operators.js). */
export const operatorFunctions: readonly OrtFunction[] = [
  'CustomOpDomain_Add',
  'CreateStatus',
  'KernelContext_GetInput',
  'KernelContext_GetOutput',
  'GetTensorMutableData',
  'GetTensorTypeAndShape',
  'GetDimensionsCount',
  'GetDimensions',
  'ReleaseTensorTypeAndShapeInfo',
];

/** Lowest API version that has all of the table and the operators used. */
const apiVersion = 23;
const nowAndForever = 0x1002; // RTLD_NOW | RTLD_NODELETE
const alignment = 64;
/** From here on, in bytes, blocks come from the system and go back to it at once. */
const largeBlock = 2 ** 18;
const readWrite = 3; // PROT_READ | PROT_WRITE
const privateAnonymous = 0x22; // MAP_PRIVATE | MAP_ANONYMOUS
const unreserved = 0x4000; // MAP_NORESERVE
const notNeeded = 4; // MADV_DONTNEED
const pageSize = 2 ** 16; // at least that of the system
const mapFailed = 0xffff_ffff_ffff_ffffn;

export interface OrtLibrary {
  readonly version: string;
  /** Address of a function, for another thread. */
  address(name: OrtFunction): bigint;
  /** Calls a function; a status becomes an error. */
  call(name: OrtFunction, ...args: unknown[]): void;
  /** Calls a function whose last argument receives a handle. */
  make(name: OrtFunction, ...args: unknown[]): Handle;
  /** Has the C library give back what it keeps of freed memory. */
  trim(): void;
  /** Addresses for so many bytes; undefined where there are none. */
  reserve(bytes: number): Space | undefined;
  /** A block of zeroed memory on a boundary of 64 bytes; undefined where there is none. */
  allocate(bytes: number): HostBlock | undefined;
}

/** What koffi makes of a function; its results are checked by the table only. */
// biome-ignore lint/suspicious/noExplicitAny: the result's type is in the table
type Callable = (...args: unknown[]) => any;

const libraries = new Map<string, Promise<OrtLibrary>>();

/**
 * Loads a library once per process and pins it: otherwise the garbage collector may unload it under its functions.
 * @throws DslaError E_UNAVAILABLE
 */
export function openLibrary(path: string): Promise<OrtLibrary> {
  let library = libraries.get(path);
  if (!library) {
    library = load(path);
    libraries.set(path, library);
  }
  return library;
}

async function load(path: string): Promise<OrtLibrary> {
  const { default: koffi } = await import('koffi');
  // Unnamed, because named koffi types are global to a thread; unlike `void *` it refuses strings and objects.
  const handle = koffi.pointer(koffi.opaque());
  const typeOf = (name: string): string | TypeObject => (name === H ? handle : name);
  const callable = (address: bigint, result: string, args: readonly string[]): Callable =>
    koffi.decode(address, koffi.proto(null, typeOf(result), args.map(typeOf)));
  const pointerAt = (from: bigint, slot: number): bigint => koffi.decode(from, slot * 8, P);

  const libc = koffi.load('libc.so.6');
  libc.func('dlopen', P, [S, I])(path, nowAndForever);
  const base: bigint = koffi.load(path).func('OrtGetApiBase', P, [])();
  const version: string = callable(pointerAt(base, 1), S, [])();
  const api: bigint | null = callable(pointerAt(base, 0), P, ['uint32_t'])(apiVersion);
  if (!api)
    throw new DslaError('E_UNAVAILABLE', {
      where: path,
      rule: `ONNX Runtime must offer API ${apiVersion}`,
      got: version,
      cure: 'Install onnxruntime-node 1.29.0.',
    });
  const names = Object.keys(table) as OrtFunction[];
  const addresses = new Map(names.map((name) => [name, pointerAt(api, table[name][0])]));
  const functions = new Map(
    names.map((name) => [name, callable(addresses.get(name)!, table[name][1], table[name][2])]),
  );
  const calloc = libc.func('calloc', P, [Z, Z]);
  const free = libc.func('free', V, [P]);
  const trim = libc.func('malloc_trim', I, [Z]);
  const mmap = libc.func('mmap', P, [P, Z, I, I, I, 'int64_t']);
  const madvise = libc.func('madvise', I, [P, Z, I]);
  const munmap = libc.func('munmap', I, [P, Z]);

  const call = (name: OrtFunction, ...args: unknown[]): void => {
    const status: bigint | null | undefined = functions.get(name)!(...args);
    if (!status) return;
    const message: string = functions.get('GetErrorMessage')!(status);
    functions.get('ReleaseStatus')!(status);
    throw new DslaError('E_DEVICE', { where: `ONNX Runtime ${name}`, rule: message });
  };
  return {
    version,
    address: (name) => addresses.get(name)!,
    call,
    make(name, ...args) {
      const out = new BigUint64Array(1);
      call(name, ...args, out);
      return out[0]!;
    },
    trim: () => trim(0),
    reserve(bytes) {
      const length = Math.ceil(bytes / pageSize) * pageSize;
      const address: bigint | null = mmap(null, length, readWrite, privateAnonymous | unreserved, -1, 0);
      if (!address || address === mapFailed) return undefined;
      // The system backs pages when they are first touched, with zeros.
      const unmap = (page: bigint, size: number): void => madvise(page, size, notNeeded);
      const pages = new PagedSpace({ size: pageSize, map: () => true, unmap }, address);
      return {
        page: pageSize,
        take(from, size) {
          pages.take(from, size);
          const block = hostBlock(address + BigInt(from), koffi.view(address + BigInt(from), size), () => {
            block.content.fill(0); // what stays of a border page
            pages.give(from, size);
          });
          return block;
        },
        free: () => munmap(address, length),
      };
    },
    allocate(bytes) {
      if (bytes >= largeBlock) {
        const address: bigint | null = mmap(null, bytes, readWrite, privateAnonymous, -1, 0);
        if (!address || address === mapFailed) return undefined;
        return hostBlock(address, koffi.view(address, bytes), () => munmap(address, bytes));
      }
      const block: bigint | null = calloc(1, bytes + alignment);
      if (!block) return undefined;
      const address = (block + BigInt(alignment - 1)) & ~BigInt(alignment - 1);
      return hostBlock(address, koffi.view(address, bytes), () => free(block));
    },
  };
}
