import type { LayerGraph, Weight } from './graph.js';
import type { StateSpec } from './state.js';
import type { DType, HostTensor, StorageType, TensorSpec } from './tensor.js';

// What a plug-in implements. Rules:
// - async: obstacles, open, compile, submit, download, export, asyncDispose. Everything else is sync and ordered.
// - who makes it disposes it; a step's values die with the step; dispose is idempotent and safe while work is in flight.
// - `run` may neither allocate on the host per element nor wait; the only waiting points of a token are submit and download.
// - a submitted step always finishes: a signal stops before the submit, so a state is never half-written.

export interface AttentionBackend {
  readonly specificationVersion: 1;
  readonly name: string;
  /** Opens nothing. One sentence an obstacle; empty means that `open` should work here. */
  obstacles(options?: OpenOptions): Promise<readonly string[]>;
  /** @throws DslaError E_UNAVAILABLE */
  open(options?: OpenOptions): Promise<Device>;
}

export interface OpenOptions {
  readonly computeType?: 'f32' | 'f16';
  readonly threads?: number;
  readonly signal?: AbortSignal;
  /** Options of one backend, e.g. `binding` of onnx. */
  readonly extra?: Readonly<Record<string, string>>;
}

export interface Capabilities {
  readonly computeType: DType;
  /** What one compile call should get: a segment, or as many consecutive segments as no swap separates. */
  readonly grain: 'segment' | 'run';
  /** Tokens of a sequence in one step that a prompt is best cut into; left out: a few hundred. */
  readonly stepTokens?: number;
}

export interface Device extends AsyncDisposable {
  readonly backend: string;
  /** One line for people: runtime, version, device. */
  readonly description: string;
  readonly capabilities: Capabilities;
  /** Settles once, when the device is lost or its runtime fails beyond repair. */
  readonly lost: Promise<Error>;
  /** Sentences; empty means that compile will succeed. */
  unsupported(graph: LayerGraph): readonly string[];
  /** Weights are shared by name among the layers of a device. */
  compile(graph: LayerGraph, weights: WeightSource, signal?: AbortSignal): Promise<AttentionLayer>;
  /** Memory of a slot may be taken at its first use and given back by `clear`. @throws DslaError E_MEMORY */
  createState(spec: StateSpec, slots: number, tokens: number): StateStore;
  upload(tensor: HostTensor): DeviceBuffer;
  download(buffer: DeviceBuffer): Promise<HostTensor>;
  /**
   * `values`: named inputs of the step's first layers, [N, width] each; owned by the caller. Where steps can draw, `ids`
   * [N, 1] i32 replaces the ids of the batch, which then are not read.
   */
  beginStep(batch: StepBatch, values?: Named<DeviceBuffer>): Step;
  memory(): { readonly buffers: number; readonly bytes: number };
}

export interface WeightSource {
  /** @throws DslaError E_CONFIG when there is no such weight. */
  spec(name: Weight): { readonly storage: StorageType; readonly shape: readonly number[] };
  /** Reads and converts; the result belongs to the caller. */
  read(name: Weight, as: 'f32' | 'f16'): Promise<HostTensor>;
}

export interface DeviceBuffer extends TensorSpec, Disposable {
  readonly bytes: number;
}

/** A compiled tape. */
export interface AttentionLayer extends Disposable {
  readonly graph: LayerGraph;
}

export interface StateStore extends Disposable {
  readonly spec: StateSpec;
  readonly slots: number;
  readonly tokens: number;
  /** Bytes held now. */
  readonly bytes: number;
  /** Zeroes the slot; its memory may be returned. */
  clear(slot: number): void;
  /** Fork of a request, reuse of a prefix. */
  copy(from: number, to: number): void;
  /** The parts of `spec` in order, float parts as f32. Entries never written are unspecified. */
  export(slot: number): Promise<readonly HostTensor[]>;
  import(slot: number, parts: readonly HostTensor[]): void;
}

export type Named<T> = Readonly<Record<string, T>>;

export interface Row {
  /** Index into every state store. */
  readonly slot: number;
  /** Tokens already in the states. */
  readonly past: number;
  /** Tokens of this step. */
  readonly count: number;
}

export interface StepBatch {
  /** Rows end to end, no padding. Length = sum of counts. */
  readonly ids: Int32Array;
  readonly rows: readonly Row[];
}

/** How the next token of a row is drawn from its logits. */
export interface Draw {
  /** Divides the logits; 0 takes the most likely token, the first of equals. */
  readonly temperature: number;
  /** Only the k most likely tokens, and those equal to the last of them. */
  readonly topK?: number | undefined;
  /** Of these only the most likely ones that reach this probability together, and those equal to the last. */
  readonly topP?: number | undefined;
  /** In [0, 1): the token, by id, at which the sum of probabilities exceeds it. */
  readonly uniform: number;
}

/** Records, then submits. The step holds the named values that flow from layer to layer. */
export interface Step extends Disposable {
  /**
   * Runs a layer: its inputs are read from, its outputs written to the step's named values. `rows` (indices into the batch)
   * limits it to those rows; the other rows of its outputs keep what an earlier run wrote. Returns at once.
   */
  run(layer: AttentionLayer, states: Named<StateStore>, rows?: readonly number[]): void;
  /** A named value; its content may be downloaded after submit. @throws DslaError E_INPUT when nothing wrote it. */
  value(name: string): DeviceBuffer;
  submit(signal?: AbortSignal): Promise<void>;
  /**
   * Where a backend can: draws a token a row from the value `logits`, [rows, vocabulary], and writes the value `ids`, [rows, 1]
   * i32, -1 where a logit is not a number. Once submit was called, it may be downloaded, and the next step may take it.
   * @throws DslaError E_INPUT: no logits of last tokens, not one draw a row, a draw out of range
   */
  draw?(draws: readonly Draw[]): void;
}
