import type { Operator } from '../cuda/operator.js';
import type { Dialect, Quantised } from '../dialect.js';
import type { ElementType } from '../protobuf.js';

// What the backend needs of ONNX Runtime, whichever way it is reached. Everything that computes happens off the calling
// thread; memory is written, copied and read between executions.

/** A zeroed block of the memory that sessions work on. */
export interface Memory {
  /** Never used twice in a process. */
  readonly id: number;
  readonly bytes: number;
  /** Fills its beginning. `data` may be used again afterwards. */
  write(data: ArrayBufferView): void;
  /** Fills `bytes` from `toByte` on with those of another from `fromByte` on. */
  copy(from: Memory, fromByte: number, toByte: number, bytes: number): void;
  /** Its beginning, as it is now. */
  read(bytes: number): Promise<ArrayBuffer>;
  /** The same beginning, together with the following ones of its region; undefined where they are not there. */
  readonly beside?: ((count: number) => Memory | undefined) | undefined;
  /** What is bound to it and must go with it. */
  readonly bound: Set<{ dispose(): void }>;
  free(): void;
}

/** Room for equal pieces of memory side by side, each there while it is taken. */
export interface Region {
  /** A zeroed piece; undefined while it is held by somebody else. @throws DslaError E_MEMORY */
  take(index: number, where: string): Memory | undefined;
  free(): void;
}

/** A stretch of memory seen as a tensor. */
export interface Tensor {
  readonly memory: Memory;
  /** In bytes. */
  readonly offset: number;
  readonly type: ElementType;
  readonly dims: readonly number[];
}

/** Inputs and outputs of one run, fixed. */
export interface Bound {
  /** Its memory has not been freed. */
  readonly alive: boolean;
  dispose(): void;
}

/** Packed matrices, shared by the sessions that are made with it. They go first. */
export interface Pack {
  dispose(): void;
}

export interface SessionRequest {
  readonly model: Uint8Array;
  /** Matrices that the model says to lie in the stand-in; their memory must outlive the session. */
  readonly constants: ReadonlyMap<string, Tensor>;
  /** Of our own, ready. */
  readonly operators: readonly Operator[];
  readonly pack: Pack;
  /** Named by errors. */
  readonly where: string;
}

export interface Session {
  bind(inputs: ReadonlyMap<string, Tensor>, outputs: ReadonlyMap<string, Tensor>): Bound;
  dispose(): void;
}

/** Of the inputs of an operator, by name. */
type Sizes = ReadonlyMap<string, number>;

/** What an error names: `layers.3 row 2`. */
export interface CommandPlace {
  readonly kernel: { readonly model: { readonly name: string } };
  readonly row?: number;
}

/** Work to be executed in order. */
export interface Commands {
  /** `at` is named when the run fails. */
  run(bound: Bound, at: CommandPlace): void;
  copy(from: Memory, fromByte: number, to: Memory, toByte: number, bytes: number): void;
  /** Sizes that its runs read on the host have changed: what was recorded of an execution holds no more. */
  resized(): void;
  /** They will not be executed again. */
  dispose(): void;
}

export interface Traffic {
  readonly toDevice: number;
  readonly toHost: number;
}

/** A way to reach ONNX Runtime, opened. */
export interface Binding {
  readonly description: string;
  readonly dialect: Dialect;
  /** Settles when the thread that computes has ended by itself. */
  readonly lost: Promise<Error>;
  /** `onHost`: in the host's memory, wherever it computes. @throws DslaError E_MEMORY */
  allocate(bytes: number, where: string, onHost?: boolean): Memory;
  /** Room for `count` pieces of memory; undefined where they cannot lie side by side. */
  region(bytes: number, count: number): Region | undefined;
  /** Bytes that could be allocated now. */
  available(): number;
  /** Bytes that went between host and device so far; undefined where there is no difference. */
  readonly traffic: Traffic | undefined;
  /**
   * File that a model may name as the place of its matrices, which sessions then get as constants and keep packed for the
   * kernels: it must exist, and nobody reads it. Without it all weights are inputs.
   */
  readonly standIn: string | undefined;
  pack(): Pack;
  /** Compiles operators of our own for sessions; without them from then on (`dialect`) and false where that fails. */
  ready(operators: readonly Operator[]): Promise<boolean>;
  /**
   * Runs an operator of our own once, by itself; `named`: its sizes. Undefined where there are none.
   * @throws Error with what the compiler or the driver says
   */
  readonly run:
    | ((operator: Operator, inputs: readonly Memory[], outputs: readonly Memory[], named: Sizes) => Promise<void>)
    | undefined;
  /** @throws DslaError E_DEVICE with ONNX Runtime's text. */
  session(request: SessionRequest): Promise<Session>;
  commands(): Commands;
  /**
   * `begun`: called once they are handed over and others may be, before these are done; not where others have to wait.
   * @throws DslaError E_DEVICE with ONNX Runtime's text and the `where` of the run.
   */
  execute(commands: Commands, begun?: () => void): Promise<void>;
  /** How long the last commands took on the computing thread, in microseconds. */
  readonly computed: number;
  /** The last commands were not issued one by one but launched as a recorded graph. */
  readonly replayed: boolean;
  close(): Promise<void>;
}

export interface BindingOptions {
  readonly threads: number;
  /** Of matrices, where they have a type of their own. */
  readonly weights?: Quantised;
  /** Keep matrices packed where that is possible. */
  readonly packs: boolean;
  /** Prefix of the files of ONNX Runtime's profiler, which is off without it. */
  readonly profile?: string;
}
