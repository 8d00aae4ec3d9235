import { DslaError } from '@dsla/spec';
import { type Kernels, openKernels } from '../cuda/kernels.js';
import type { Operator } from '../cuda/operator.js';
import type { Dialect } from '../dialect.js';
import type { Traffic } from './binding.js';
import type { Block } from './block.js';
import { compilerObstacle, majorOf } from './cuda-files.js';
import { openCudaPages } from './cuda-pages.js';
import type { Handle, OrtLibrary } from './ort-api.js';
import { PagedSpace, type Space } from './space.js';

const [toDevice, toHost, onDevice] = [1, 2, 3]; // cudaMemcpyKind
const outOfMemoryStatus = 2;
const nonBlocking = 1;
const relaxed = 2; // cudaStreamCaptureModeRelaxed
const [arenaAllocator, sameAsRequested] = [1, 1];

/** One CUDA device with a stream of its own: all that this binding computes goes through it, in order. */
export interface Cuda {
  /** Of the device. */
  readonly name: string;
  /** OrtMemoryInfo of device memory. */
  readonly info: Handle;
  /** For operators of our own, or why there are none. */
  readonly kernels: Kernels | string;
  readonly traffic: Traffic;
  /** What the computing thread needs. */
  readonly forThread: Readonly<Record<string, unknown>>;
  /** Undefined where there is no memory left. */
  allocate(bytes: number): Block | undefined;
  available(): number;
  /** Addresses for so many bytes; undefined where there are none. */
  reserve(bytes: number): Space | undefined;
  /** Another device goes on with it: nothing went between host and device. */
  renew(): void;
  /** Runs an operator of our own once. `addresses`: of its inputs and outputs; `named`: its sizes. @throws Error */
  run(operator: Operator, addresses: readonly bigint[], named: ReadonlyMap<string, number>): Promise<void>;
  /** What was written or run so has arrived when this returns. */
  settle(): void;
  /** Whether an error has come to stay: then nothing works on the device until the process ends. */
  broken(): boolean;
  /** Its computing thread has ended: others may take their turn. */
  leave(): void;
  /** Makes a session compute here. */
  append(sessionOptions: Handle): void;
  close(): void;
}

/** One at a time: sessions of all devices take what they need while they run from the same memory. Its state, and whose turn it is. */
const turn = new Int32Array(new SharedArrayBuffer(8));
let nextDevice = 1;

export interface CudaOptions {
  /** libcudart, as the provider is linked with it. */
  readonly runtime: string;
  readonly compute: Dialect['compute'];
  /** Of our own are wanted. */
  readonly operators: boolean;
}

/** `environment`: OrtEnv. @throws DslaError E_DEVICE */
export async function openCuda(
  library: OrtLibrary,
  environment: Handle,
  { runtime, compute, operators }: CudaOptions,
): Promise<Cuda> {
  const { call, status } = await cudaRuntime(runtime);
  const info = sharedMemory(library, environment);
  call('cudaSetDevice', 0);
  // Blocks may be taken and given back here while the computing thread records.
  call('cudaThreadExchangeStreamCaptureMode', Int32Array.of(relaxed));
  const made = new BigUint64Array(1);
  call('cudaStreamCreateWithFlags', made, nonBlocking);
  const stream = made[0]!;
  const runOptions = library.make('CreateRunOptions');
  library.call('AddRunConfigEntry', runOptions, 'disable_synchronize_execution_providers', '1');
  const traffic = { toDevice: 0, toHost: 0 };
  const own = nextDevice++;

  let arriving = false;
  /** Not on the stream, where the computing thread may be recording, but settled before anything runs there. */
  const copy = (to: bigint | Uint8Array, from: bigint | Uint8Array, bytes: number, kind: number): void => {
    call('cudaMemcpy', to, from, bytes, kind);
    arriving ||= kind !== toHost;
  };
  const pages = await openCudaPages();
  const block = (address: bigint, free: () => void): Block => ({
    address,
    write(data) {
      traffic.toDevice += data.byteLength;
      if (data.byteLength > 0) copy(address, data, data.byteLength, toDevice);
    },
    copy: (from, fromByte, toByte, bytes) =>
      copy(address + BigInt(toByte), from.address + BigInt(fromByte), bytes, onDevice),
    read(bytes) {
      traffic.toHost += bytes;
      const content = new Uint8Array(bytes);
      if (bytes > 0) copy(content, address, bytes, toHost);
      return content.buffer;
    },
    free,
  });
  const zeroed = (address: bigint, bytes: number, free: () => void): Block => {
    call('cudaMemset', address, 0, bytes);
    arriving = true;
    return block(address, free);
  };
  const kernels = operators ? await kernelsOf(runtime, call) : 'not wanted';
  return {
    name: deviceName(call),
    info,
    kernels,
    traffic,
    forThread: { runtime, stream, runOptions, turn, own },
    allocate(bytes) {
      const out = new BigUint64Array(1);
      if (call('cudaMalloc', out, Math.max(bytes, 1)) === outOfMemoryStatus) {
        status('cudaGetLastError');
        return undefined;
      }
      return zeroed(out[0]!, bytes, () => status('cudaFree', out[0]!));
    },
    reserve(bytes) {
      const room = pages?.reserve(bytes);
      if (!pages || !room) return undefined;
      const space = new PagedSpace(pages, room.address);
      return {
        page: pages.size,
        take(from, size) {
          if (!space.take(from, size)) return undefined;
          return zeroed(room.address + BigInt(from), size, () => {
            status('cudaStreamSynchronize', null); // unlike cudaFree, giving pages back waits for nothing
            space.give(from, size);
          });
        },
        free: room.free,
      };
    },
    available() {
      const [free, total] = [new BigUint64Array(1), new BigUint64Array(1)];
      call('cudaMemGetInfo', free, total);
      return Number(free[0]);
    },
    broken() {
      status('cudaGetLastError'); // which forgets errors that pass
      return status('cudaStreamSynchronize', null) !== 0;
    },
    renew() {
      Object.assign(traffic, { toDevice: 0, toHost: 0 });
    },
    async run(operator, addresses, named) {
      if (typeof kernels === 'string') throw new Error(kernels);
      kernels.run(await kernels.load(operator), addresses, named);
      arriving = true;
    },
    settle() {
      if (arriving) call('cudaStreamSynchronize', null);
      arriving = false;
    },
    leave() {
      if (Atomics.compareExchange(turn, 1, own, 0) !== own) return;
      Atomics.store(turn, 0, 0);
      Atomics.notify(turn, 0);
    },
    append: (sessionOptions) => append(library, sessionOptions, stream, compute),
    close() {
      status('cudaStreamDestroy', stream);
      library.call('ReleaseRunOptions', runOptions);
    },
  };
}

/** Memory for what sessions compute, one pool for all of them, never released. */
const memories = new Map<Handle, Handle>();

function sharedMemory(library: OrtLibrary, environment: Handle): Handle {
  let info = memories.get(environment);
  if (info === undefined) {
    info = library.make('CreateMemoryInfo', 'Cuda', arenaAllocator, 0, 0);
    const arena = library.make('CreateArenaCfg', 0, sameAsRequested, -1, -1);
    try {
      library.call('CreateAndRegisterAllocatorV2', environment, 'CUDAExecutionProvider', info, arena, [], [], 0);
    } finally {
      library.call('ReleaseArenaCfg', arena);
    }
    memories.set(environment, info);
  }
  return info;
}

function append(library: OrtLibrary, sessionOptions: Handle, stream: Handle, compute: Dialect['compute']): void {
  // Split copies sizes from host memory, which cannot be recorded.
  library.call(
    'AddSessionConfigEntry',
    sessionOptions,
    'optimization.disable_specified_optimizers',
    'GatherSliceToSplitFusion',
  );
  const options = library.make('CreateCUDAProviderOptions');
  const settings = {
    device_id: '0',
    // float32 means float32; beside float16 its products may round as float16 does
    use_tf32: compute === 'float' ? '0' : '1',
    arena_extend_strategy: 'kSameAsRequested',
    has_user_compute_stream: '1',
    user_compute_stream: `${stream}`,
  };
  try {
    const [keys, values] = [Object.keys(settings), Object.values(settings)];
    library.call('UpdateCUDAProviderOptions', options, keys, values, keys.length);
    library.call('SessionOptionsAppendExecutionProvider_CUDA_V2', sessionOptions, options);
  } finally {
    library.call('ReleaseCUDAProviderOptions', options);
  }
}

type CudaFunction = keyof typeof signatures;
type Call = (name: CudaFunction, ...args: unknown[]) => number;

interface Runtime {
  readonly status: Call;
  /** The same; any status but success and want of memory is an error. */
  readonly call: Call;
}

const signatures = {
  cudaSetDevice: ['int'],
  cudaGetLastError: [],
  cudaThreadExchangeStreamCaptureMode: ['void *'],
  cudaStreamCreateWithFlags: ['void *', 'uint'],
  cudaStreamDestroy: ['void *'],
  cudaStreamSynchronize: ['void *'],
  cudaMalloc: ['void *', 'size_t'],
  cudaFree: ['void *'],
  cudaMemset: ['void *', 'int', 'size_t'],
  cudaMemcpy: ['void *', 'void *', 'size_t', 'int'],
  cudaMemGetInfo: ['void *', 'void *'],
  cudaGetDeviceProperties: ['void *', 'int'],
  cudaDeviceGetAttribute: ['void *', 'int', 'int'],
} as const;

const runtimes = new Map<string, Promise<Runtime>>();

/** One a process: functions of koffi are not given back. */
function cudaRuntime(path: string): Promise<Runtime> {
  const runtime = runtimes.get(path) ?? loadRuntime(path);
  runtimes.set(path, runtime);
  return runtime;
}

async function loadRuntime(path: string): Promise<Runtime> {
  const { default: koffi } = await import('koffi');
  const library = koffi.load(path);
  const names = Object.keys(signatures) as CudaFunction[];
  const functions = new Map(names.map((name) => [name, library.func(name, 'int', [...signatures[name]])]));
  const textOf = library.func('cudaGetErrorString', 'const char *', ['int']);
  const status: Call = (name, ...args) => functions.get(name)!(...args);
  const call: Call = (name, ...args) => {
    const got = status(name, ...args);
    if (got !== 0 && got !== outOfMemoryStatus) throw new DslaError('E_DEVICE', { where: name, rule: textOf(got) });
    return got;
  };
  return { status, call };
}

/** The name leads the structure of a device's properties. */
function deviceName(call: Call): string {
  const properties = Buffer.alloc(8192);
  call('cudaGetDeviceProperties', properties, 0);
  return properties.toString('latin1', 0, properties.indexOf(0));
}

const [capabilityMajor, capabilityMinor] = [75, 76]; // cudaDeviceAttr

async function kernelsOf(runtime: string, call: Call): Promise<Kernels | string> {
  const attribute = (which: number): number => {
    const out = new Int32Array(1);
    call('cudaDeviceGetAttribute', out, which, 0);
    return out[0]!;
  };
  const capability = [attribute(capabilityMajor), attribute(capabilityMinor)] as const;
  if (capability[0] < 9) return `they need compute capability 9.0, the device has ${capability.join('.')}`; // clusters of blocks
  const obstacle = await compilerObstacle(majorOf(runtime));
  if (obstacle !== undefined) return obstacle;
  try {
    return await openKernels(majorOf(runtime), capability);
  } catch (error) {
    return (error as Error).message;
  }
}
