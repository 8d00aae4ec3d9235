import type { ModelDescription, Plan } from '@dsla/models';
import {
  type AttentionLayer,
  type Device,
  DslaError,
  type LayerGraph,
  type Named,
  Scope,
  type StateStore,
  throwIfAborted,
  type WeightSource,
} from '@dsla/spec';
import { type StageGraphs, stagesOf } from './stages.js';

/** A model as compiled for a device: what the forward pass runs. */
export interface Program extends AsyncDisposable {
  readonly device: Device;
  readonly stages: readonly Stage[];
  readonly heads: { readonly last: AttentionLayer; readonly all: AttentionLayer };
  /** By mixer and convertible layer. Empty where the plan is fixed. */
  readonly folds: Readonly<Record<string, readonly AttentionLayer[]>>;
  /** Every state of every layer, by name. */
  readonly states: Named<StateStore>;
}

/** A stretch of the forward pass, in one version per mixer or in one for all. */
export interface Stage {
  readonly layer?: number;
  readonly versions: ReadonlyMap<string, AttentionLayer>;
}

/** The version that a mixer uses; where there is none of its own, the model's. */
export const versionOf = ({ versions }: Stage, mixer: string): AttentionLayer =>
  versions.get(mixer) ?? versions.get('default')!;

export interface CompileOptions {
  readonly device: Device;
  /** The only plan that will be run; left out, every mixer of the description stays available. */
  readonly plan?: Plan | undefined;
  readonly slots: number;
  /** Tokens a slot can hold. */
  readonly context: number;
  readonly signal?: AbortSignal | undefined;
  /** Called after every compiled tape. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Compiles every tape and makes the state stores; whatever was made is disposed when it fails or is aborted.
 * @throws DslaError E_UNSUPPORTED with every obstacle, E_ABORTED, and what the device throws
 */
export async function compile(
  description: ModelDescription,
  weights: WeightSource,
  options: CompileOptions,
): Promise<Program> {
  const { device, slots, context, signal, onProgress } = options;
  const plan =
    options.plan ?? (description.mixers.length === 0 ? Array(description.convertible).fill('default') : undefined);
  const stages = stagesOf(description, device.capabilities.grain, plan);
  const folds = Object.entries(plan ? {} : description.folds);
  const graphs = [
    ...stages.flatMap(({ versions }) => [...versions.values()]),
    description.head,
    description.headAll,
    ...folds.flatMap(([, layers]) => layers),
  ];
  refuseUnsupported(device, graphs);

  await using scope = new Scope();
  const compiled = new Map<LayerGraph, AttentionLayer>();
  for (const graph of graphs) {
    throwIfAborted(signal, 'loading');
    compiled.set(graph, scope.use(await device.compile(graph, weights, signal)));
    onProgress?.(compiled.size, graphs.length);
  }
  const states: Record<string, StateStore> = {};
  for (const spec of graphs.flatMap((graph) => graph.states)) {
    states[spec.name] ??= scope.use(device.createState(spec, slots, context));
  }
  const layerOf = (graph: LayerGraph): AttentionLayer => compiled.get(graph)!;
  const made = scope.move();
  return {
    device,
    stages: stages.map((stage) => compiledStage(stage, layerOf)),
    heads: { last: layerOf(description.head), all: layerOf(description.headAll) },
    folds: Object.fromEntries(folds.map(([mixer, layers]) => [mixer, layers.map(layerOf)])),
    states,
    [Symbol.asyncDispose]: () => made[Symbol.asyncDispose](),
  };
}

function compiledStage({ layer, versions }: StageGraphs, layerOf: (graph: LayerGraph) => AttentionLayer): Stage {
  const compiled = new Map([...versions].map(([mixer, graph]) => [mixer, layerOf(graph)]));
  return layer === undefined ? { versions: compiled } : { layer, versions: compiled };
}

function refuseUnsupported(device: Device, graphs: readonly LayerGraph[]): void {
  const reasons = [...new Set(graphs.flatMap((graph) => device.unsupported(graph)))];
  if (reasons.length === 0) return;
  throw new DslaError('E_UNSUPPORTED', {
    where: device.backend,
    rule: `this model needs what the backend cannot do: ${reasons.join(' | ')}`,
    cure: 'Use another backend, or other mixers.',
    details: { reasons },
  });
}
