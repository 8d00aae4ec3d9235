import {
  type AttentionLayer,
  DslaError,
  inferWidths,
  inlineCalls,
  type LayerGraph,
  throwIfAborted,
  type Weight,
  type WeightSource,
} from '@dsla/spec';
import type { Traits } from './builder.js';
import type { Format } from './kernels/quantise.js';
import { lower } from './lower.js';
import type { Pipeline, Pipelines } from './pipelines.js';
import type { Op, Program } from './program.js';
import type { Command, Recording } from './recording.js';
import type { Weights } from './weights.js';

export class WebgpuLayer implements AttentionLayer {
  readonly graph: LayerGraph;
  readonly program: Program;
  readonly commands: readonly Command[];
  /** By format and name. */
  readonly weights: ReadonlyMap<string, GPUBuffer>;
  /** Of the latest runs. */
  readonly recordings: Recording[] = [];
  readonly #release: () => void;
  disposed = false;

  constructor(
    graph: LayerGraph,
    program: Program,
    commands: readonly Command[],
    weights: ReadonlyMap<string, GPUBuffer>,
    release: () => void,
  ) {
    this.graph = graph;
    this.program = program;
    this.commands = commands;
    this.weights = weights;
    this.#release = release;
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    for (const { groups } of this.commands) groups.length = 0;
    this.recordings.length = 0;
    this.#release();
  }
}

/** Where a layer keeps a weight. */
export function weightKey(name: Weight, type: Format): string {
  return `${type} ${name}`;
}

export async function compile(
  graph: LayerGraph,
  source: WeightSource,
  traits: Traits,
  pipelines: Pipelines,
  store: Weights,
  signal?: AbortSignal,
): Promise<WebgpuLayer> {
  throwIfAborted(signal, `compile ${graph.name}`);
  const shapeOf = (name: Weight) => source.spec(name).shape;
  inferWidths(graph, shapeOf); // with its calls, whose arguments are checked too
  const program = lower(inlineCalls(graph), shapeOf, traits);
  const weights = new Map<string, GPUBuffer>();
  const taken: { name: Weight; type: Format }[] = [];
  const release = () => {
    for (const { name, type } of taken.splice(0)) store.give(name, type);
  };
  try {
    for (const ref of program.ops.flatMap(({ buffers }) => buffers)) {
      if (ref.kind !== 'weight' || weights.has(weightKey(ref.name, ref.type))) continue;
      throwIfAborted(signal, `compile ${graph.name}`);
      weights.set(weightKey(ref.name, ref.type), await store.take(source, ref.name, ref.type));
      taken.push(ref);
    }
    const compiled = await Promise.all(program.ops.map((op) => pipelineOf(graph.name, op, pipelines)));
    const commands = program.ops.map((op, index): Command => ({ op, pipeline: compiled[index]!, groups: [] }));
    return new WebgpuLayer(graph, program, commands, weights, release);
  } catch (error) {
    release();
    throw error;
  }
}

async function pipelineOf(layer: string, { kernel }: Op, pipelines: Pipelines): Promise<Pipeline> {
  try {
    return await pipelines.get(kernel);
  } catch (cause) {
    const rule = `the driver must accept the kernel ${kernel.name}: ${cause instanceof Error ? cause.message : cause}`;
    throw new DslaError('E_DEVICE', { where: `compile ${layer} on webgpu`, rule, cause });
  }
}
