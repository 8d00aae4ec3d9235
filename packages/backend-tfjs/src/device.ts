import {
  type AttentionBackend,
  type AttentionLayer,
  type Capabilities,
  checkBatch,
  type DeviceBuffer,
  DslaError,
  elementCount,
  type HostTensor,
  inlineCalls,
  type LayerGraph,
  type Named,
  type StateSpec,
  type StateStore,
  type Step,
  type StepBatch,
  type TrainableLayer,
  type TrainingDevice,
  throwIfAborted,
  type Weight,
  type WeightSource,
} from '@dsla/spec';
import * as tf from '@tensorflow/tfjs-core';
import { TfjsBuffer, tensorOf } from './buffer.js';
import { describe, type Engine, engineObstacles, enginesToTry, openEngine, use } from './engines.js';
import { compile } from './layer.js';
import { plainOf, statefulOf } from './lower.js';
import { disposed, Holder, invalid } from './memory.js';
import { RopeTables } from './rope.js';
import { TfjsStore } from './state.js';
import { type Bench, TfjsStep } from './step.js';
import { compileTrainable } from './train.js';
import { Weights } from './weights.js';

/**
 * TensorFlow.js: eager, float32, the training device. `extra.engine` names one of tfjs-node-gpu, tfjs-node, webgpu, wasm, cpu;
 * without it the first that works in that order, where a software WebGPU adapter does not count.
 */
export const tfjsBackend: AttentionBackend = {
  specificationVersion: 1,
  name: 'tfjs',
  async obstacles(options) {
    if (options?.computeType === 'f16') return ['it computes in float32; leave computeType out or ask for f32'];
    const reasons: string[] = [];
    for (const name of enginesToTry(options?.extra?.engine)) {
      const own = await engineObstacles(name, options?.extra?.engine !== undefined);
      if (own.length === 0) return [];
      reasons.push(...own);
    }
    return reasons;
  },
  async open(options) {
    throwIfAborted(options?.signal, 'tfjs open');
    const wanted = options?.extra?.engine;
    const reasons = options?.computeType === 'f16' ? [...(await tfjsBackend.obstacles(options))] : [];
    for (const name of reasons.length > 0 ? [] : enginesToTry(wanted)) {
      const obstacles = await engineObstacles(name, wanted !== undefined);
      reasons.push(...obstacles);
      if (obstacles.length > 0) continue;
      try {
        return new TfjsDevice(await openEngine(name));
      } catch (error) {
        reasons.push((error as Error).message);
      }
    }
    throw new DslaError('E_UNAVAILABLE', {
      where: 'tfjs open',
      rule: `no engine can run here: ${reasons.join(' | ')}`,
      details: { reasons },
    });
  },
};

class TfjsDevice implements TrainingDevice {
  readonly backend = 'tfjs';
  readonly description: string;
  readonly capabilities: Capabilities = { computeType: 'f32', grain: 'segment' };
  /** Never settles: an engine that fails says so in the call that failed. */
  readonly lost: Promise<Error> = new Promise(() => {});
  readonly #engine: Engine;
  readonly #holder = new Holder();
  readonly #weights: Weights;
  readonly #bench: Bench;
  #gone = false;

  constructor(engine: Engine) {
    this.#engine = engine;
    this.description = describe(engine);
    this.#weights = new Weights(engine, this.#holder);
    this.#bench = {
      engine,
      holder: this.#holder,
      frame: {
        rope: new RopeTables(this.#holder),
        weight: (name) => this.#weights.get(name, 'plain'),
        transposed: (name) => this.#weights.get(name, 'transposed'),
      },
    };
  }

  unsupported(graph: LayerGraph): readonly string[] {
    const known = ['input', 'output', 'foldState'];
    return inlineCalls(graph).nodes.flatMap((node, index) =>
      known.includes(node.op) || plainOf(node) || statefulOf(node)
        ? []
        : [`${graph.name} node ${index}: op ${node.op} is unknown to this version`],
    );
  }

  async compile(graph: LayerGraph, weights: WeightSource, signal?: AbortSignal): Promise<AttentionLayer> {
    this.#check();
    return await compile(graph, weights, this.#weights, signal);
  }

  async compileTrainable(
    graph: LayerGraph,
    weights: WeightSource,
    trainable: readonly Weight[],
    signal?: AbortSignal,
  ): Promise<TrainableLayer> {
    this.#check();
    return await compileTrainable(graph, weights, trainable, this.#weights, this.#bench, signal);
  }

  createState(spec: StateSpec, slots: number, tokens: number): StateStore {
    this.#check();
    return new TfjsStore(spec, slots, tokens, this.#engine, this.#holder);
  }

  upload({ dtype, shape, data }: HostTensor): DeviceBuffer {
    this.#check();
    if ((dtype !== 'f32' && dtype !== 'i32') || data.length !== elementCount(shape))
      throw invalid(
        'upload',
        `must be f32 or i32 with the length of [${shape.join(', ')}]`,
        `${dtype}, ${data.length}`,
      );
    use(this.#engine);
    const tensor = tf.tensor(
      data.slice() as Float32Array | Int32Array,
      [...shape],
      dtype === 'f32' ? 'float32' : 'int32',
    );
    return new TfjsBuffer('buffer', tensor, this.#holder);
  }

  async download(buffer: DeviceBuffer): Promise<HostTensor> {
    this.#check();
    const tensor = tensorOf(buffer, 'download');
    use(this.#engine);
    const data = (await tensor.data()).slice() as Float32Array | Int32Array;
    return { dtype: buffer.dtype, shape: buffer.shape, data };
  }

  beginStep(batch: StepBatch, values: Named<DeviceBuffer> = {}): Step {
    this.#check();
    checkBatch(batch, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY); // slots and capacity are known by each store
    return new TfjsStep(batch, values, this.#bench);
  }

  memory(): { readonly buffers: number; readonly bytes: number } {
    return { buffers: this.#holder.buffers, bytes: this.#holder.bytes };
  }

  /** Frees what is left. The engine stays: TensorFlow.js has one a process. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#gone) return;
    this.#gone = true;
    use(this.#engine);
    this.#holder.releaseAll();
  }

  #check(): void {
    if (this.#gone) throw disposed('device tfjs');
  }
}
