import {
  type AttentionLayer,
  bytesPerElement,
  type Capabilities,
  checkBatch,
  type Device,
  type DeviceBuffer,
  DslaError,
  elementCount,
  type HostTensor,
  inlineCalls,
  type LayerGraph,
  type Named,
  type Op,
  type OpenOptions,
  type StateSpec,
  type StateStore,
  type Step,
  type StepBatch,
  type WeightSource,
} from '@dsla/spec';
import { disposed, invalid, WebgpuBuffer } from './buffer.js';
import { Memory, Pool } from './buffers.js';
import type { Traits } from './builder.js';
import { cast } from './kernels/cast.js';
import { drawSize, drawTokens, takeTokens } from './kernels/draw.js';
import type { Element } from './kernels/kernel.js';
import type { Quantised } from './kernels/quantise.js';
import { compile } from './layer.js';
import { type Pipeline, Pipelines } from './pipelines.js';
import type { NamedValue } from './program.js';
import { RopeTables } from './rope.js';
import { type StateHost, WebgpuState } from './state.js';
import { type StepHost, WebgpuStep } from './step.js';
import { deviceKey, readTuning, tunedTraits } from './tuning.js';
import { Weights, writeBytes } from './weights.js';

export async function openDevice(adapter: GPUAdapter, options: OpenOptions): Promise<Device> {
  const limit = Number(options.extra?.memory ?? Number.POSITIVE_INFINITY);
  if (!(limit > 0)) throw invalid('open webgpu', 'extra.memory must be a number of bytes', options.extra?.memory);
  const { device, traits } = await openGpu(adapter, options);
  const pipelines = new Pipelines(device);
  const casts = traits.type === 'f32' ? undefined : await castsOf(pipelines);
  const taking = await pipelines.get(takeTokens());
  return new WebgpuDevice(adapter, device, traits, pipelines, casts, taking, limit);
}

/** By the type that comes out. */
async function castsOf(pipelines: Pipelines): Promise<StepHost['casts']> {
  return { f16: await pipelines.get(cast('f16', 'f32')), f32: await pipelines.get(cast('f32', 'f16')) };
}

/** A WebGPU device with all that our kernels can use. */
export async function openGpu(
  adapter: GPUAdapter,
  { computeType, extra }: OpenOptions,
): Promise<{ readonly device: GPUDevice; readonly traits: Traits }> {
  const { limits, features } = adapter;
  const wanted = ['shader-f16', 'subgroups', 'chromium-experimental-subgroup-matrix'];
  const device = await adapter.requestDevice({
    requiredFeatures: wanted.filter((feature) => features.has(feature)) as GPUFeatureName[],
    requiredLimits: {
      maxBufferSize: limits.maxBufferSize,
      maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
      maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      maxComputeInvocationsPerWorkgroup: limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupSizeX: limits.maxComputeWorkgroupSizeX,
    },
  });
  const type = computeType ?? (features.has('shader-f16') ? 'f16' : 'f32');
  const traits = { ...traitsOf(adapter, type), weights: weightsOf(extra?.weights, type) };
  if (!traits.matrices) return { device, traits };
  return { device, traits: { ...traits, ...tunedTraits(readTuning(deviceKey(adapter.info))) } };
}

/** The option `extra.weights`: a type of its own for the matrices of wide products. */
function weightsOf(option: string | undefined, type: Element): Quantised | undefined {
  if (option === undefined || option === type) return undefined;
  if (option === 'q8' || option === 'q4') return option;
  throw invalid('open webgpu', `extra.weights must be ${type}, q8 or q4`, option);
}

function traitsOf({ features, info, limits }: GPUAdapter, type: Element): Traits {
  const { subgroupMinSize, subgroupMaxSize } = info;
  const fixed = features.has('subgroups') && subgroupMinSize === subgroupMaxSize;
  const lanes = fixed ? (subgroupMinSize ?? 0) : 0;
  const { subgroupMatrixConfigs = [] } = info as { readonly subgroupMatrixConfigs?: Iterable<MatrixConfig> };
  const product = [...subgroupMatrixConfigs].some(
    ({ componentType, resultComponentType, M, N, K }) =>
      componentType === 'f16' && resultComponentType === 'f32' && M === 16 && N === 16 && K === 16,
  );
  const roomy = limits.maxComputeWorkgroupStorageSize >= 49152; // a product takes all of it
  const threads = limits.maxComputeInvocationsPerWorkgroup;
  return { type, lanes, threads, matrices: product && type === 'f16' && lanes === 32 && roomy };
}

/** Dawn's description of a product of subgroup matrices. */
interface MatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

class WebgpuDevice implements Device {
  readonly backend = 'webgpu';
  readonly description: string;
  readonly capabilities: Capabilities;
  readonly lost: Promise<Error>;
  readonly #traits: Traits;
  readonly #pipelines: Pipelines;
  readonly #weights: Weights;
  readonly #drawing = new Map<NamedValue['key'], Pipeline>();
  readonly #shared = new Map<number | 'parts', GPUBuffer>();
  readonly #host: StateHost & StepHost;
  #failure: Error | undefined;
  #gone = false;

  constructor(
    adapter: GPUAdapter,
    device: GPUDevice,
    traits: Traits,
    pipelines: Pipelines,
    casts: StepHost['casts'],
    taking: Pipeline,
    limit: number,
  ) {
    const { type } = traits;
    this.#traits = traits;
    const { description, device: name } = adapter.info;
    this.description = `WebGPU (Dawn) on ${name || 'an unnamed adapter'}${description ? `, ${description}` : ''}, ${type}`;
    const hardware = !adapter.info.isFallbackAdapter;
    this.capabilities = { computeType: type, grain: 'run', ...(hardware && { stepTokens: 4096 }) };
    this.#pipelines = pipelines;
    const memory = new Memory(device, limit, (error) => {
      this.#failure ??= error;
    });
    this.#weights = new Weights(device, memory, pipelines, type);
    this.#host = {
      device,
      type,
      memory,
      pool: new Pool(memory),
      ropes: new RopeTables(device, memory),
      batchLayout: pipelines.batchLayout,
      casts,
      taking,
      drawing: this.#drawing,
      noBatch: pipelines.noBatch,
      submitted: new Set(),
      scratch: (slot, bytes) => this.#sharedOf(slot, bytes),
      parts: (bytes) => this.#sharedOf('parts', bytes),
      check: (where) => this.#check(where),
    };
    device.addEventListener('uncapturederror', ({ error }) => {
      this.#failure ??= new DslaError('E_INTERNAL', { where: 'webgpu', rule: error.message });
    });
    this.lost = new Promise((resolve) => {
      void device.lost.then(({ reason, message }) => {
        if (this.#gone) return;
        this.#failure = new DslaError('E_DEVICE', {
          where: 'webgpu',
          rule: `the device was lost (${reason}): ${message}`,
          cure: 'Open a new device; what this one held is gone.',
        });
        resolve(this.#failure);
      });
    });
  }

  unsupported(graph: LayerGraph): readonly string[] {
    return inlineCalls(graph).nodes.flatMap(({ op }, index) =>
      known.has(op) ? [] : [`${graph.name} node ${index}: the op ${op} is unknown to this version.`],
    );
  }

  async compile(graph: LayerGraph, weights: WeightSource, signal?: AbortSignal): Promise<AttentionLayer> {
    this.#check('compile');
    const [reason] = this.unsupported(graph);
    if (reason) throw new DslaError('E_UNSUPPORTED', { where: 'compile on webgpu', rule: reason });
    const layer = await compile(graph, weights, this.#traits, this.#pipelines, this.#weights, signal);
    const size = drawSize(this.#host.device.limits.maxComputeInvocationsPerWorkgroup);
    const logits = layer.program.outputs.find(({ name, domain }) => name === 'logits' && domain === 'row');
    if (logits) this.#drawing.set(logits.key, await this.#pipelines.get(drawTokens(logits, size)));
    return layer;
  }

  createState(spec: StateSpec, slots: number, tokens: number): StateStore {
    this.#check('createState');
    return new WebgpuState(this.#host, spec, slots, tokens, this.#host.type);
  }

  upload({ dtype, shape, data }: HostTensor): DeviceBuffer {
    this.#check('upload');
    if (data.length !== elementCount(shape))
      throw invalid('upload', `data must fill [${shape.join(', ')}]`, `${data.length} elements`);
    const { device, memory } = this.#host;
    const bytes = elementCount(shape) * bytesPerElement[dtype];
    const buffer = memory.take('upload', bytes);
    writeBytes(device, buffer, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return new WebgpuBuffer('buffer', dtype, shape, bytes, buffer, (free) => memory.give(free));
  }

  async download(buffer: DeviceBuffer): Promise<HostTensor> {
    this.#check('download');
    if (!(buffer instanceof WebgpuBuffer)) throw invalid('download', 'must be a buffer of this backend', typeof buffer);
    const { dtype, shape, bytes } = buffer;
    const content = await this.#host.memory.read(buffer.buffer, 0, bytes);
    this.#check('download');
    return { dtype, shape, data: new arrays[dtype](content) };
  }

  beginStep(batch: StepBatch, values: Named<DeviceBuffer> = {}): Step {
    this.#check('beginStep');
    checkBatch(batch, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY); // slots and capacity are known by each store
    return new WebgpuStep(this.#host, batch, values);
  }

  memory(): { readonly buffers: number; readonly bytes: number } {
    const { buffers, bytes } = this.#host.memory;
    return { buffers, bytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    this.#host.device.destroy();
  }

  #check(where: string): void {
    if (this.#gone) throw disposed(`device webgpu: ${where}`);
    if (this.#failure) throw this.#failure;
  }

  #sharedOf(slot: number | 'parts', bytes: number): GPUBuffer {
    const { memory } = this.#host;
    const old = this.#shared.get(slot);
    if (old && old.size >= bytes) return old;
    const rounded = 2 ** Math.ceil(Math.log2(Math.max(bytes, 256)));
    const buffer = memory.take('scratch', rounded > memory.largest ? bytes : rounded);
    if (old) memory.give(old);
    this.#shared.set(slot, buffer);
    return buffer;
  }
}

const arrays = { f32: Float32Array, f16: Uint16Array, i32: Int32Array, u32: Uint32Array } as const;

const known: ReadonlySet<string> = new Set<Op>([
  'input',
  'embed',
  'linear',
  'rmsNorm',
  'add',
  'mul',
  'concat',
  'slice',
  'activate',
  'softmaxAttention',
  'dualLinearAttention',
  'causalConv',
  'selectiveScan',
  'foldState',
  'lastToken',
  'output',
]);
