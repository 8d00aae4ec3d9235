import { basename, dirname } from 'node:path';
import type { LoadedOperator } from '../cuda/kernels.js';
import type { Operator } from '../cuda/operator.js';
import { type Dialect, onCpu, onCuda } from '../dialect.js';
import { GraphBuilder } from '../emit.js';
import { startThread, type Thread } from '../thread.js';
import type {
  Binding,
  BindingOptions,
  Commands,
  Memory,
  Pack,
  Region,
  Session,
  SessionRequest,
  Traffic,
} from './binding.js';
import { CApiCommands, CApiPack, CApiSession, OwnOperators, tensorValue } from './c-api-parts.js';
import { type Cuda, type CudaOptions, openCuda } from './cuda.js';
import { atCommand, deviceError, outOfMemory, refuseAbsurd } from './failures.js';
import { CApiMemory } from './memory.js';
import { type Handle, type OrtLibrary, openLibrary, operatorFunctions } from './ort-api.js';
import { CApiRegion } from './region.js';

/** ONNX Runtime's C API through koffi: memory is bound in place and nothing is copied. Without `onDevice` on the CPU. */
export async function openCApi(path: string, options: BindingOptions, onDevice?: CudaOptions): Promise<Binding> {
  const library = await openLibrary(path);
  const environment = environmentOf(library, options.threads);
  const cuda = onDevice && (await openCuda(library, environment.handle, onDevice));
  const addresses = Object.fromEntries(threadFunctions.map((name) => [name, library.address(name)]));
  const engine = { binding: 'c-api', addresses, runtime: onDevice?.runtime };
  const thread = await startThread(engine, cuda && { patience, cuda: cuda.forThread });
  const shared = options.threads === environment.threads && (await hasPool(library, environment, thread));
  const provided = onDevice ? onCuda(onDevice.compute, typeof cuda?.kernels === 'object') : onCpu;
  const dialect = { ...provided, weights: options.weights };
  return new CApi(path, { library, environment, thread, shared, dialect, cuda }, options);
}

/** What the computing thread calls. */
const threadFunctions = [
  'CreateSessionFromArrayWithPrepackedWeightsContainer',
  'RunWithBinding',
  'GetErrorMessage',
  'ReleaseStatus',
  ...operatorFunctions,
] as const;

/** Beside a device there is nothing better to do on the computing thread. */
const patience = { answer: 20, next: 2 };

interface Environment {
  readonly handle: Handle;
  readonly hostMemory: Handle;
  /** Threads of the pool that its sessions share. */
  readonly threads: number;
}

const environments = new Map<OrtLibrary, Environment>();

/** One a process, never released: ONNX Runtime keeps a single one, with one thread pool and one arena for all sessions. */
function environmentOf(library: OrtLibrary, threads: number): Environment {
  let environment = environments.get(library);
  if (!environment) {
    const threading = library.make('CreateThreadingOptions');
    library.call('SetGlobalIntraOpNumThreads', threading, threads);
    const handle = library.make('CreateEnvWithGlobalThreadPools', logErrors, 'dsla', threading);
    library.call('ReleaseThreadingOptions', threading);
    const hostMemory = library.make('CreateCpuMemoryInfo', 1, 0);
    library.call('CreateAndRegisterAllocator', handle, hostMemory, null);
    environment = { handle, hostMemory, threads };
    environments.set(library, environment);
  }
  return environment;
}

/** Whoever made the process's environment before us, onnxruntime-node for one, made it without a pool; only a session tells. */
async function hasPool(library: OrtLibrary, { handle: env }: Environment, thread: Thread): Promise<boolean> {
  const graph = new GraphBuilder();
  graph.output('y', graph.op('Neg', [graph.input('x', 'float', [1])]), [1]);
  const options = library.make('CreateSessionOptions');
  const pack = library.make('CreatePrepackedWeightsContainer');
  library.call('DisablePerSessionThreads', options);
  try {
    const session = await thread.ask({ kind: 'create', model: graph.finish('probe'), env, options, pack });
    library.call('ReleaseSession', session);
    return true;
  } catch {
    return false;
  } finally {
    library.call('ReleasePrepackedWeightsContainer', pack);
    library.call('ReleaseSessionOptions', options);
  }
}

/** Of a tensor's first byte, as kernels that read several numbers at once want it. */
const alignedBytes = 16;

const logErrors = 3;
const allOptimisations = 99;

let nextProfile = 1;

/** What a binding works with. */
interface Opened {
  readonly library: OrtLibrary;
  readonly environment: Environment;
  readonly thread: Thread;
  /** Sessions share the environment's thread pool. */
  readonly shared: boolean;
  readonly dialect: Dialect;
  readonly cuda: Cuda | undefined;
}

class CApi implements Binding {
  dialect: Dialect;
  readonly standIn: string | undefined;
  readonly lost: Promise<Error>;
  readonly #library: OrtLibrary;
  readonly #environment: Environment;
  readonly #thread: Thread;
  readonly #options: BindingOptions;
  readonly #cuda: Cuda | undefined;
  /** Of the stand-in. */
  readonly #folder: string;
  /** Sessions share the environment's thread pool. */
  readonly #shared: boolean;
  readonly #memories = new Set<Memory>();
  readonly #regions = new Set<Region>();
  /** The device itself is. */
  readonly #broken = settledLater();
  /** Sessions and packs in use, in the order in which they may go. */
  readonly #sessions = new Set<CApiSession>();
  readonly #packs = new Set<CApiPack>();
  readonly #place: string;
  /** Why there are no operators of our own on the device. */
  #without: string | undefined;

  constructor(path: string, { library, environment, thread, shared, dialect, cuda }: Opened, options: BindingOptions) {
    this.#place = cuda ? `CUDA on ${cuda.name}, ${dialect.compute}` : `CPU, ${options.threads} threads`;
    this.#without = typeof cuda?.kernels === 'string' ? cuda.kernels : undefined;
    this.dialect = dialect;
    this.lost = Promise.race([thread.lost, this.#broken.promise]);
    void thread.lost.then(() => cuda?.leave());
    this.standIn = options.packs && (!cuda || options.weights === 'q8') ? basename(path) : undefined;
    this.#cuda = cuda;
    this.#folder = dirname(path);
    this.#library = library;
    this.#environment = environment;
    this.#thread = thread;
    this.#options = options;
    this.#shared = shared;
  }

  get description(): string {
    const without = this.#without === undefined ? '' : `, without operators of our own: ${this.#without}`;
    return `ONNX Runtime ${this.#library.version}, ${this.#place}, C API through koffi${without}`;
  }

  allocate(bytes: number, where: string, onHost: boolean = false): Memory {
    const device = onHost ? undefined : this.#cuda;
    if (!device) refuseAbsurd(bytes, where);
    const block = (device ?? this.#library).allocate(bytes);
    if (!block) throw outOfMemory(bytes, this.available(), where);
    const { info } = device ?? { info: this.#environment.hostMemory };
    const memory: CApiMemory = new CApiMemory(block, info, bytes, () => this.#memories.delete(memory));
    this.#memories.add(memory);
    return memory;
  }

  region(bytes: number, count: number): Region | undefined {
    if (count < 2 || bytes === 0 || bytes % alignedBytes !== 0) return undefined;
    const space = (this.#cuda ?? this.#library).reserve(bytes * count);
    const { info } = this.#cuda ?? { info: this.#environment.hostMemory };
    if (!space) return undefined;
    const region: CApiRegion = new CApiRegion(
      space,
      bytes,
      info,
      () => this.available(),
      () => this.#regions.delete(region),
    );
    this.#regions.add(region);
    return region;
  }

  available(): number {
    return this.#cuda?.available() ?? process.availableMemory();
  }

  get traffic(): Traffic | undefined {
    return this.#cuda?.traffic;
  }

  pack(): Pack {
    const handle = this.#library.make('CreatePrepackedWeightsContainer');
    const pack: CApiPack = new CApiPack(this.#library, handle, () => this.#packs.delete(pack));
    this.#packs.add(pack);
    return pack;
  }

  async ready(operators: readonly Operator[]): Promise<boolean> {
    try {
      await this.#loaded(operators);
      return true;
    } catch (error) {
      this.#without = (error as Error).message;
      this.dialect = { ...this.dialect, operators: false };
      return false;
    }
  }

  async session({ model, constants, operators, pack, where }: SessionRequest): Promise<Session> {
    const library = this.#library;
    const { handle: env } = this.#environment;
    const options = this.#sessionOptions();
    // MatMulNBits with constants, for few rows.
    if (this.#cuda && constants.size > 0) library.call('AddSessionConfigEntry', options, 'ep.cuda.fpa_intb_gemm', '1');
    // The options keep pointers to these values, and nobody says when they are last read: they go with the session.
    const values: Handle[] = [];
    let own: OwnOperators | undefined;
    try {
      if (operators.length > 0) own = new OwnOperators(library, await this.#loaded(operators), options);
      for (const [name, tensor] of constants) {
        values.push(tensorValue(library, tensor));
        library.call('AddInitializer', options, name, values.at(-1));
      }
      const request = { kind: 'create', model, env, options, pack: (pack as CApiPack).handle, own: own?.request };
      const handle = (await this.#thread.ask(request)) as Handle;
      const kept = { constants: values, own };
      const session: CApiSession = new CApiSession(library, handle, kept, () => this.#sessions.delete(session));
      this.#sessions.add(session);
      return session;
    } catch (error) {
      for (const value of values) library.call('ReleaseValue', value);
      own?.dispose();
      throw deviceError(error, where);
    } finally {
      library.call('ReleaseSessionOptions', options);
    }
  }

  commands(): Commands {
    return new CApiCommands((id) => this.#thread.tell({ kind: 'forget', commands: id }));
  }

  async execute(commands: Commands, begun: () => void = () => {}): Promise<void> {
    const own = commands as CApiCommands;
    try {
      const again = own.known && !(this.#cuda && own.stale);
      own.stale = false;
      own.known = true;
      this.#cuda?.settle();
      if (again) {
        const done = this.#thread.again(own.id);
        begun();
        await done;
      } else await this.#thread.ask({ kind: 'execute', commands: own.id, list: BigUint64Array.from(own.list) });
    } catch (cause) {
      const where = atCommand(cause, own.places);
      if (!this.#cuda?.broken()) throw deviceError(cause, where, this.available());
      const error = deviceError(cause, where);
      this.#broken.resolve(error);
      throw error;
    }
  }

  get computed(): number {
    return this.#thread.computed;
  }

  get replayed(): boolean {
    return this.#thread.replayed;
  }

  async close(): Promise<void> {
    if (this.#cuda) await this.#thread.ask({ kind: 'forgetAll' }).catch(() => undefined); // it may be lost
    await this.#thread.close();
    this.#cuda?.leave();
    for (const memory of this.#memories) memory.free();
    for (const region of this.#regions) region.free();
    for (const session of this.#sessions) session.dispose();
    for (const pack of this.#packs) pack.dispose();
    this.#cuda?.close();
  }

  async #loaded(operators: readonly Operator[]): Promise<LoadedOperator[]> {
    const { kernels } = this.#cuda ?? {};
    if (operators.length === 0 || typeof kernels !== 'object') return [];
    return await Promise.all(operators.map((operator) => kernels.load(operator)));
  }

  #sessionOptions(): Handle {
    const library = this.#library;
    const options = library.make('CreateSessionOptions');
    library.call('SetSessionGraphOptimizationLevel', options, allOptimisations);
    library.call('AddSessionConfigEntry', options, 'session.use_env_allocators', '1');
    // Outside the arena, which would keep the memory of sessions that are gone.
    library.call('AddSessionConfigEntry', options, 'session.use_device_allocator_for_initializers', '1');
    const folderEntry = 'session.model_external_initializers_file_folder_path';
    library.call('AddSessionConfigEntry', options, folderEntry, this.#folder);
    if (this.#shared) library.call('DisablePerSessionThreads', options);
    else {
      library.call('SetIntraOpNumThreads', options, this.#options.threads);
      library.call('AddSessionConfigEntry', options, 'session.intra_op.allow_spinning', '0');
    }
    this.#cuda?.append(options);
    // ONNX Runtime tells files apart by the second only.
    const { profile } = this.#options;
    if (profile !== undefined) library.call('EnableProfiling', options, `${profile}${nextProfile++}`);
    return options;
  }
}

function settledLater(): { readonly promise: Promise<Error>; resolve(error: Error): void } {
  let settle: (error: Error) => void = () => {};
  const promise = new Promise<Error>((resolve) => {
    settle = resolve;
  });
  return { promise, resolve: (error) => settle(error) };
}
