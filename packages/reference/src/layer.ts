import {
  type AttentionLayer,
  checkStates,
  inferWidths,
  inlineCalls,
  type LayerGraph,
  throwIfAborted,
  type Weight,
  type WeightSource,
  weightsOf,
} from '@dsla/spec';
import type { Program } from './interpret.js';
import type { Tensor } from './tensor.js';
import type { WeightPool } from './weights.js';

export class ReferenceLayer implements AttentionLayer {
  readonly graph: LayerGraph;
  readonly program: Program;
  readonly #pool: WeightPool;
  #gone = false;

  constructor(graph: LayerGraph, program: Program, pool: WeightPool) {
    this.graph = graph;
    this.program = program;
    this.#pool = pool;
  }

  get disposed(): boolean {
    return this.#gone;
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    for (const name of this.program.weights.keys()) this.#pool.release(name);
  }
}

/** Checks the tape against its weights and states, then reads the weights. */
export async function compile(
  graph: LayerGraph,
  source: WeightSource,
  pool: WeightPool,
  signal?: AbortSignal,
): Promise<ReferenceLayer> {
  const shapeOf = (name: Weight) => source.spec(name).shape;
  inferWidths(graph, shapeOf); // with its calls, whose arguments are checked too
  const plain = inlineCalls(graph);
  const widths = inferWidths(plain, shapeOf);
  checkStates(plain, shapeOf);
  const weights = new Map<Weight, Tensor>();
  try {
    for (const name of weightsOf(plain)) {
      throwIfAborted(signal, `compile ${graph.name}`);
      weights.set(name, await pool.acquire(name, source));
    }
  } catch (error) {
    for (const name of weights.keys()) pool.release(name);
    throw error;
  }
  return new ReferenceLayer(graph, { graph: plain, widths, weights }, pool);
}
