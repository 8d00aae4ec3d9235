import { type AttentionLayer, type LayerGraph, throwIfAborted, type WeightSource } from '@dsla/spec';
import type { Binding, Tensor } from './binding/binding.js';
import { Kernel } from './kernel.js';
import type { Order } from './order.js';
import { compileProgram, type Model, modelsOf, type Program } from './program.js';
import type { WeightClaim, WeightTable } from './weights.js';

export class OnnxLayer implements AttentionLayer {
  readonly graph: LayerGraph;
  readonly program: Program;
  readonly #kernels: ReadonlyMap<Model, Kernel>;
  readonly #claims: readonly WeightClaim[];
  readonly #order: Order;
  #gone = false;

  constructor(
    graph: LayerGraph,
    program: Program,
    kernels: ReadonlyMap<Model, Kernel>,
    claims: readonly WeightClaim[],
    order: Order,
  ) {
    this.graph = graph;
    this.program = program;
    this.#kernels = kernels;
    this.#claims = claims;
    this.#order = order;
  }

  get disposed(): boolean {
    return this.#gone;
  }

  kernel(model: Model): Kernel {
    return this.#kernels.get(model)!;
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#order.after(() => {
      for (const kernel of this.#kernels.values()) kernel.dispose();
      for (const claim of this.#claims) claim.release();
    });
  }
}

/** Writes the models of a tape and reads its weights; the sessions are made when they are first run. */
export async function compileLayer(
  graph: LayerGraph,
  source: WeightSource,
  device: { readonly binding: Binding; readonly weights: WeightTable; readonly order: Order },
  signal: AbortSignal | undefined,
): Promise<OnnxLayer> {
  const program = compileProgram(graph, (name) => source.spec(name).shape);
  const claims = new Map<string, WeightClaim>();
  try {
    for (const { inputs } of modelsOf(program)) {
      for (const { name, source: from } of inputs) {
        if (from.kind !== 'weight' || claims.has(name)) continue;
        throwIfAborted(signal, `compile ${graph.name}`);
        claims.set(name, await device.weights.acquire(from.weight, from.derivation, source));
      }
    }
  } catch (error) {
    for (const claim of claims.values()) claim.release();
    throw error;
  }
  const weightsOf = ({ inputs }: Model): ReadonlyMap<string, Tensor> =>
    new Map(inputs.flatMap(({ name }) => (claims.has(name) ? [[name, claims.get(name)!.tensor] as const] : [])));
  const kernels = new Map(
    modelsOf(program).map((model) => [model, new Kernel(model, device.binding, weightsOf(model))] as const),
  );
  return new OnnxLayer(graph, program, kernels, [...claims.values()], device.order);
}
