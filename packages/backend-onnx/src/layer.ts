import {
  type AttentionLayer,
  type LayerGraph,
  type StateSpec,
  throwIfAborted,
  type Weight,
  type WeightSource,
} from '@dsla/spec';
import type { Binding, Pack } from './binding/binding.js';
import { drawOperator } from './cuda/draw.js';
import { drawsOwn } from './draw.js';
import { Kernel } from './kernel.js';
import type { Model } from './model.js';
import type { Order } from './order.js';
import { type Place, placesOf } from './places.js';
import { compileProgram, modelsOf, type Program } from './program.js';
import type { OnnxStore } from './state.js';
import type { WeightClaim, WeightTable } from './weights.js';

export class OnnxLayer implements AttentionLayer {
  readonly graph: LayerGraph;
  readonly program: Program;
  readonly #kernels: ReadonlyMap<Model, Kernel>;
  readonly #pack: Pack;
  readonly #claims: readonly WeightClaim[];
  readonly #order: Order;
  readonly #places = new Map<string, readonly Place[]>();
  readonly #accepted = new WeakMap<OnnxStore, StateSpec>();
  #gone = false;

  constructor(
    graph: LayerGraph,
    program: Program,
    kernels: ReadonlyMap<Model, Kernel>,
    pack: Pack,
    claims: readonly WeightClaim[],
    order: Order,
  ) {
    this.graph = graph;
    this.program = program;
    this.#kernels = kernels;
    this.#pack = pack;
    this.#claims = claims;
    this.#order = order;
  }

  get disposed(): boolean {
    return this.#gone;
  }

  /** The places of the values, given those of the inputs; worked out once for each combination. */
  places(input: (name: string) => Place): readonly Place[] {
    let key = '';
    for (const { name } of this.program.inputs) key += input(name);
    let places = this.#places.get(key);
    if (!places) {
      places = placesOf(this.program, input);
      this.#places.set(key, places);
    }
    return places;
  }

  /** Whether a store is laid out as the layer's state wants it. */
  accepts(spec: StateSpec, store: OnnxStore): boolean {
    if (this.#accepted.get(store) === spec) return true;
    const same = JSON.stringify(spec.parts) === JSON.stringify(store.spec.parts);
    if (same) this.#accepted.set(store, spec);
    return same;
  }

  kernel(model: Model): Kernel {
    return this.#kernels.get(model)!;
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#order.after(() => {
      for (const kernel of this.#kernels.values()) kernel.dispose();
      this.#pack.dispose();
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
  const { binding } = device;
  const shapeOf = (name: Weight): readonly number[] => source.spec(name).shape;
  const program = await readyProgram(binding, ({ standIn, dialect }) =>
    compileProgram(graph, shapeOf, { standIn, dialect }, (joint) => device.weights.join(joint)),
  );
  const claims = new Map<string, WeightClaim>();
  try {
    for (const { inputs, matrices } of modelsOf(program)) {
      for (const { name, source: from } of [...inputs, ...matrices]) {
        if (from.kind !== 'weight' || claims.has(name)) continue;
        throwIfAborted(signal, `compile ${graph.name}`);
        claims.set(name, await device.weights.acquire(from.weight, from.derivation, source));
      }
    }
  } catch (error) {
    for (const claim of claims.values()) claim.release();
    throw error;
  }
  const weights = new Map(Array.from(claims, ([name, { tensor }]) => [name, tensor] as const));
  const pack = binding.pack();
  const kernels = new Map(
    modelsOf(program).map((model) => [model, new Kernel(model, binding, pack, weights)] as const),
  );
  return new OnnxLayer(graph, program, kernels, pack, [...claims.values()], device.order);
}

/** A program whose operators of our own are compiled, and what may draw from its logits, or, where they cannot be, one of ONNX Runtime's alone. */
async function readyProgram(binding: Binding, compile: (binding: Binding) => Program): Promise<Program> {
  const program = compile(binding);
  const operators = modelsOf(program).flatMap((model) => model.operators);
  const logits = program.outputs.find(({ name }) => name === 'logits');
  const drawing = logits && drawsOwn(program.dialect) ? [drawOperator(program.widths[logits.value]!)] : [];
  return (await binding.ready([...operators, ...drawing])) ? program : compile(binding);
}
