import {
  type AttentionLayer,
  checkStates,
  inferWidths,
  inlineCalls,
  type LayerGraph,
  type WeightShape,
  type WeightSource,
} from '@dsla/spec';
import { disposed } from './memory.js';
import type { Weights } from './weights.js';

/** A checked tape without calls, whose weights are on the device. */
export class TfjsLayer implements AttentionLayer {
  readonly graph: LayerGraph;
  /** The tape with its calls inlined. */
  readonly tape: LayerGraph;
  /** Width of every value of the tape. */
  readonly widths: readonly number[];
  readonly #weights: Weights;
  #gone = false;

  constructor(graph: LayerGraph, tape: LayerGraph, widths: readonly number[], weights: Weights) {
    this.graph = graph;
    this.tape = tape;
    this.widths = widths;
    this.#weights = weights;
  }

  /** @throws DslaError E_DISPOSED */
  check(): void {
    if (this.#gone) throw disposed(`layer ${this.graph.name}`);
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#weights.release(this.tape);
  }
}

/** Checks a tape against its weights and states, then loads the weights. */
export async function compile(
  graph: LayerGraph,
  source: WeightSource,
  weights: Weights,
  signal?: AbortSignal,
): Promise<TfjsLayer> {
  const shapeOf: WeightShape = (name) => source.spec(name).shape;
  inferWidths(graph, shapeOf); // with its calls, whose arguments are checked too
  const tape = inlineCalls(graph);
  const widths = inferWidths(tape, shapeOf);
  checkStates(tape, shapeOf);
  await weights.acquire(tape, source, signal);
  return new TfjsLayer(graph, tape, widths, weights);
}
