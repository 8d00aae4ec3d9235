import {
  type AttentionLayer,
  type Capabilities,
  checkBatch,
  type Device,
  type DeviceBuffer,
  elementCount,
  type HostTensor,
  type LayerGraph,
  type Named,
  type StateSpec,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
  type WeightSource,
} from '@dsla/spec';
import type { Binding } from './binding/binding.js';
import { OnnxBuffer } from './buffer.js';
import { computeType } from './dialect.js';
import { Drawings } from './drawings.js';
import { disposed, invalid } from './errors.js';
import { compileLayer } from './layer.js';
import { packed } from './numbers.js';
import { Order } from './order.js';
import { Plans } from './plan.js';
import { NamedPools, Pool } from './pool.js';
import { unsupportedNodes } from './program.js';
import { OnnxStore } from './state.js';
import { OnnxStep } from './step.js';
import { Tables } from './tables.js';
import { WeightTable } from './weights.js';

export class OnnxDevice implements Device {
  readonly backend = 'onnx';
  readonly capabilities: Capabilities;
  readonly lost: Promise<Error>;
  readonly binding: Binding;
  readonly pool: Pool;
  readonly valuePools: NamedPools;
  readonly inputPool: Pool;
  readonly sizePool: Pool;
  readonly weights: WeightTable;
  readonly tables: Tables;
  readonly drawings: Drawings;
  readonly order: Order = new Order();
  readonly plans: Plans = new Plans();
  readonly #type: 'f32' | 'f16';
  #gone = false;

  constructor(binding: Binding) {
    this.binding = binding;
    this.lost = binding.lost;
    this.#type = computeType(binding.dialect);
    this.capabilities = {
      computeType: this.#type,
      grain: 'run',
      ...(binding.dialect.flash && { stepTokens: 2048 }),
    };
    this.pool = new Pool(binding);
    this.valuePools = new NamedPools(binding);
    this.inputPool = new Pool(binding);
    this.sizePool = new Pool(binding, true);
    this.weights = new WeightTable(this.pool, binding);
    this.tables = new Tables(binding);
    this.drawings = new Drawings(binding, this.order);
  }

  get description(): string {
    return this.binding.description;
  }

  unsupported(graph: LayerGraph): readonly string[] {
    return unsupportedNodes(graph);
  }

  async compile(graph: LayerGraph, weights: WeightSource, signal?: AbortSignal): Promise<AttentionLayer> {
    this.#check();
    throwIfAborted(signal, `compile ${graph.name}`);
    return await compileLayer(graph, weights, this, signal);
  }

  createState(spec: StateSpec, slots: number, tokens: number): StateStore {
    this.#check();
    return new OnnxStore(spec, slots, tokens, this.binding, this.pool, this.order);
  }

  upload({ dtype, shape, data }: HostTensor): DeviceBuffer {
    this.#check();
    if (dtype !== 'f32' || data.length !== elementCount(shape))
      throw invalid('upload', `must be f32 with the length of [${shape.join(', ')}]`, `${dtype}, ${data.length}`);
    const copy = packed(Float32Array.from(data), this.binding.dialect.compute);
    const memory = this.pool.take(copy.byteLength, 'upload');
    this.order.after(() => memory.write(copy));
    return new OnnxBuffer('buffer', this.#type, shape, (own) => this.order.after(() => this.pool.give(own)), memory);
  }

  async download(buffer: DeviceBuffer): Promise<HostTensor> {
    this.#check();
    if (!(buffer instanceof OnnxBuffer)) throw invalid('download', 'must be a buffer of this backend', typeof buffer);
    buffer.check();
    buffer.hold();
    try {
      return await this.order.read(() => buffer.read());
    } finally {
      buffer.letGo();
    }
  }

  beginStep(batch: StepBatch, values: Named<DeviceBuffer> = {}): Step {
    this.#check();
    checkBatch(batch, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY); // slots and capacity are known by each store
    return new OnnxStep(batch, values, this);
  }

  memory(): { readonly buffers: number; readonly bytes: number } {
    const used = [this.pool, ...this.valuePools.all].map(({ usage }) => usage);
    const sum = (of: 'buffers' | 'bytes'): number => used.reduce((total, { [of]: number }) => total + number, 0);
    return { buffers: sum('buffers'), bytes: sum('bytes') };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    await this.order.idle();
    await this.binding.close();
  }

  #check(): void {
    if (this.#gone) throw disposed('device onnx');
  }
}
