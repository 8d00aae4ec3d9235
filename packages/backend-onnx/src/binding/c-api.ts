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
import { cores } from './cores.js';
import { type Cuda, type CudaOptions, openCuda } from './cuda.js';
import { atCommand, deviceError, outOfMemory, refuseAbsurd } from './failures.js';
import { type HeldSession, type Lane, leaveLane, Shelf, takeLane } from './lane.js';
import { CApiMemory } from './memory.js';
import { type Handle, type OrtLibrary, openLibrary, operatorFunctions } from './ort-api.js';
import { CApiRegion } from './region.js';

/** ONNX Runtime's C API through koffi: memory is bound in place and nothing is copied. Without `onDevice` on the CPU. */
export async function openCApi(path: string, options: BindingOptions, onDevice?: CudaOptions): Promise<Binding> {
  const library = await openLibrary(path);
  const environment = environmentOf(library, options.threads);
  const kind = JSON.stringify([path, options.threads, onDevice]);
  const lane = takeLane(kind) ?? (await openLane(library, environment, options.threads, onDevice));
  lane.cuda?.renew();
  const provided = onDevice ? onCuda(onDevice.compute, typeof lane.cuda?.kernels === 'object') : onCpu;
  const dialect = { ...provided, weights: options.weights };
  const leave = (): void => leaveLane(kind, lane);
  return new CApi(path, { library, environment, lane, leave, dialect }, options);
}

async function openLane(
  library: OrtLibrary,
  environment: Environment,
  threads: number,
  onDevice: CudaOptions | undefined,
): Promise<Lane> {
  const cuda = onDevice && (await openCuda(library, environment.handle, onDevice));
  const addresses = Object.fromEntries(threadFunctions.map((name) => [name, library.address(name)]));
  const spare = cuda !== undefined || threads < cores();
  const thread = await startThread(
    { binding: 'c-api', addresses, cuda: cuda?.forThread },
    spare ? patience : undefined,
  );
  const shared = threads === environment.threads && (await hasPool(library, environment, thread));
  const lane: Lane = { thread, cuda, shared, shelf: cuda && new Shelf(), onLost: () => {} };
  void thread.lost.then((error) => lane.onLost(error));
  return lane;
}

/** What the computing thread calls. */
const threadFunctions = [
  'CreateSessionFromArrayWithPrepackedWeightsContainer',
  'RunWithBinding',
  'GetErrorMessage',
  'ReleaseStatus',
  ...operatorFunctions,
] as const;

/** Beside a device, or with a core that computes nothing, there is nothing better to do than to wait awake. */
const patience = { answer: 20, next: 2 };

interface Environment {
  readonly handle: Handle;
  readonly hostMemory: Handle;
  /** Prepacked weights, none. */
  readonly noPack: Handle;
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
    const noPack = library.make('CreatePrepackedWeightsContainer');
    environment = { handle, hostMemory, noPack, threads };
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
  readonly lane: Lane;
  /** Leaves the lane to another device. */
  leave(): void;
  readonly dialect: Dialect;
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
  readonly #lane: Lane;
  readonly #leave: () => void;
  /** Of the stand-in. */
  readonly #folder: string;
  readonly #memories = new Set<Memory>();
  readonly #regions = new Set<Region>();
  /** Why it is of no use any more. */
  readonly #lost = settledLater();
  #gone = false;
  #failed = false;
  /** Sessions and packs in use, in the order in which they may go. */
  readonly #sessions = new Set<CApiSession>();
  readonly #packs = new Set<CApiPack>();
  readonly #place: string;
  /** Why there are no operators of our own on the device. */
  #without: string | undefined;

  constructor(path: string, { library, environment, lane, leave, dialect }: Opened, options: BindingOptions) {
    const { thread, cuda } = lane;
    this.#place = cuda ? `CUDA on ${cuda.name}, ${dialect.compute}` : `CPU, ${options.threads} threads`;
    this.#without = typeof cuda?.kernels === 'string' ? cuda.kernels : undefined;
    this.dialect = dialect;
    this.lost = this.#lost.promise;
    lane.onLost = (error) => {
      cuda?.leave();
      this.#lost.resolve(error);
    };
    this.standIn = options.packs && (!cuda || options.weights === 'q8') ? basename(path) : undefined;
    this.#cuda = cuda;
    this.#folder = dirname(path);
    this.#library = library;
    this.#environment = environment;
    this.#thread = thread;
    this.#options = options;
    this.#lane = lane;
    this.#leave = leave;
  }

  get description(): string {
    const runtime = `ONNX Runtime ${this.#library.version}, ${this.#place}, C API through koffi`;
    if (!this.#cuda) return runtime;
    const without = this.#without;
    return `${runtime}, ${without === undefined ? 'with operators of our own' : `without operators of our own: ${without}`}`;
  }

  allocate(bytes: number, where: string, onHost: boolean = false): Memory {
    const device = onHost ? undefined : this.#cuda;
    if (!device) refuseAbsurd(bytes, where);
    const allocate = () => (device ?? this.#library).allocate(bytes);
    const block = allocate() ?? (this.#lane.shelf?.clear() ? allocate() : undefined);
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

  get run(): Binding['run'] {
    const cuda = this.#cuda;
    if (typeof cuda?.kernels !== 'object') return undefined;
    return async (operator, inputs, outputs, named) => {
      const addresses = [...inputs, ...outputs].map((memory) => (memory as CApiMemory).address(0));
      await cuda.run(operator, addresses, named);
    };
  }

  async session(request: SessionRequest): Promise<Session> {
    const { shelf } = this.#lane;
    const free = request.constants.size === 0 && this.#options.profile === undefined;
    const key = shelf && free ? Shelf.keyOf(request.model) : undefined;
    const held = (key === undefined ? undefined : shelf!.take(key)) ?? (await this.#made(request));
    const session: CApiSession = new CApiSession(this.#library, held.handle, () => {
      this.#sessions.delete(session);
      if (key === undefined) held.release();
      else shelf!.put(key, held);
    });
    this.#sessions.add(session);
    return session;
  }

  async #made({ model, constants, operators, pack, where }: SessionRequest): Promise<HeldSession> {
    const library = this.#library;
    const { handle: env } = this.#environment;
    const options = this.#sessionOptions();
    // MatMulNBits with constants, for few rows.
    if (this.#cuda && constants.size > 0) library.call('AddSessionConfigEntry', options, 'ep.cuda.fpa_intb_gemm', '1');
    // The options keep pointers to these values, and nobody says when they are last read: they go with the session.
    const values: Handle[] = [];
    let own: OwnOperators | undefined;
    const release = (): void => {
      for (const value of values) library.call('ReleaseValue', value);
      own?.dispose();
    };
    try {
      if (operators.length > 0) own = new OwnOperators(library, await this.#loaded(operators), options, this.#thread);
      for (const [name, tensor] of constants) {
        values.push(tensorValue(library, tensor));
        library.call('AddInitializer', options, name, values.at(-1));
      }
      // Without constants there is nothing to pack.
      const packed = constants.size > 0 ? (pack as CApiPack).handle : this.#environment.noPack;
      const handle = (await this.#thread.ask({
        kind: 'create',
        model,
        env,
        options,
        pack: packed,
        own: own?.request,
      })) as Handle;
      return {
        handle,
        release() {
          library.call('ReleaseSession', handle);
          release();
        },
      };
    } catch (error) {
      release();
      throw deviceError(error, where);
    } finally {
      library.call('ReleaseSessionOptions', options);
    }
  }

  commands(): Commands {
    return new CApiCommands((id) => {
      if (!this.#gone) this.#thread.tell({ kind: 'forget', commands: id });
    });
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
      this.#lost.resolve(error);
      this.#failed = true;
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
    await this.#thread.ask({ kind: 'forgetAll' }).catch(() => undefined); // it may be lost
    this.#gone = true;
    this.#lane.onLost = () => {};
    const intact = this.#thread.idle && !this.#failed;
    if (!intact) await this.#thread.close();
    this.#cuda?.leave();
    for (const memory of this.#memories) memory.free();
    for (const region of this.#regions) region.free();
    for (const session of this.#sessions) session.dispose();
    for (const pack of this.#packs) pack.dispose();
    if (intact) this.#leave();
    else {
      this.#lane.shelf?.clear();
      this.#cuda?.close();
    }
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
    if (this.#lane.shared) library.call('DisablePerSessionThreads', options);
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
