import {
  type AttentionBackend,
  type AttentionLayer,
  type Capabilities,
  checkBatch,
  type Device,
  type DeviceBuffer,
  DslaError,
  elementCount,
  f32,
  type HostTensor,
  inlineCalls,
  type LayerGraph,
  type Named,
  type StateSpec,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
  type WeightSource,
} from '@dsla/spec';
import { ReferenceBuffer } from './buffer.js';
import { compile } from './layer.js';
import { operations } from './places.js';
import { ReferenceStore } from './state.js';
import { ReferenceStep } from './step.js';
import { disposed, invalid, Tally } from './tensor.js';
import { WeightPool } from './weights.js';

/** Float64, plain loops, one thread: the definition of every node, slow and sure. */
export const referenceBackend: AttentionBackend = {
  specificationVersion: 1,
  name: 'reference',
  async obstacles(options) {
    return options?.computeType === 'f16' ? ['it computes in float64; leave computeType out or ask for f32'] : [];
  },
  async open(options) {
    throwIfAborted(options?.signal, 'reference open');
    const [obstacle] = await referenceBackend.obstacles(options);
    if (obstacle) throw new DslaError('E_UNAVAILABLE', { where: 'reference open', rule: obstacle });
    return new ReferenceDevice();
  },
};

class ReferenceDevice implements Device {
  readonly backend = 'reference';
  readonly description: string = `float64 loops, Node ${process.versions.node}, ${process.arch}`;
  readonly capabilities: Capabilities = { computeType: 'f32', grain: 'segment' };
  /** Never settles: there is nothing to lose. */
  readonly lost: Promise<Error> = new Promise(() => {});
  readonly #tally = new Tally();
  readonly #weights = new WeightPool(this.#tally);
  #gone = false;

  unsupported(graph: LayerGraph): readonly string[] {
    return inlineCalls(graph).nodes.flatMap((node, index) =>
      node.op in operations ? [] : [`${graph.name} node ${index}: op ${node.op} is unknown to this version`],
    );
  }

  async compile(graph: LayerGraph, weights: WeightSource, signal?: AbortSignal): Promise<AttentionLayer> {
    this.#check();
    return await compile(graph, weights, this.#weights, signal);
  }

  createState(spec: StateSpec, slots: number, tokens: number): StateStore {
    this.#check();
    return new ReferenceStore(spec, slots, tokens, this.#tally);
  }

  upload({ dtype, shape, data }: HostTensor): DeviceBuffer {
    this.#check();
    if ((dtype !== 'f32' && dtype !== 'i32') || data.length !== elementCount(shape))
      throw invalid(
        'upload',
        `must be f32 or i32 with the length of [${shape.join(', ')}]`,
        `${dtype}, ${data.length}`,
      );
    const own = this.#tally.take('upload', data.length);
    own.set(data);
    return new ReferenceBuffer('buffer', shape, own, this.#tally, dtype);
  }

  async download(buffer: DeviceBuffer): Promise<HostTensor> {
    this.#check();
    if (!(buffer instanceof ReferenceBuffer))
      throw invalid('download', 'must be a buffer of this backend', typeof buffer);
    const { dtype, shape, data } = buffer;
    return dtype === 'i32' ? { dtype, shape, data: Int32Array.from(data) } : f32(shape, Float32Array.from(data));
  }

  beginStep(batch: StepBatch, values: Named<DeviceBuffer> = {}): Step {
    this.#check();
    checkBatch(batch, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY); // slots and capacity are known by each store
    return new ReferenceStep(batch, values, this.#tally);
  }

  memory(): { readonly buffers: number; readonly bytes: number } {
    return { buffers: this.#tally.buffers, bytes: this.#tally.bytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#gone = true;
  }

  #check(): void {
    if (this.#gone) throw disposed('device reference');
  }
}
