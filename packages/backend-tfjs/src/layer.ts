import {
  type AttentionLayer,
  convState,
  dualState,
  inferWidths,
  inlineCalls,
  kvState,
  type LayerGraph,
  type Node,
  type StateSpec,
  scanState,
  type WeightShape,
  type WeightSource,
} from '@dsla/spec';
import { disposed, invalid } from './memory.js';
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

/** Every state must be laid out as its node writes it. */
function checkStates(tape: LayerGraph, shapeOf: WeightShape): void {
  const describe = ({ parts }: StateSpec) =>
    parts.map(({ name, dtype, shape }) => `${name} ${dtype} [${shape.join(', ')}]`).join('; ');
  tape.nodes.forEach((node, index) => {
    const want = stateOf(node, shapeOf);
    if (!want) return;
    const got = describe(tape.states.find(({ name }) => name === want.name)!);
    if (got !== describe(want))
      throw invalid(`${tape.name} node ${index} (${node.op})`, `state ${want.name} must hold ${describe(want)}`, got);
  });
}

/** The state that a node writes. */
function stateOf(node: Node, shapeOf: WeightShape): StateSpec | undefined {
  switch (node.op) {
    case 'softmaxAttention':
      return kvState(node.state, node);
    case 'dualLinearAttention':
    case 'foldState': {
      const { featureMap } = node.form;
      return dualState(
        node.op === 'foldState' ? node.to : node.state,
        node.form,
        featureMap && shapeOf(featureMap.key)[1],
      );
    }
    case 'causalConv':
      return convState(node.state, shapeOf(node.weight)[0]!, shapeOf(node.weight)[2]!);
    case 'selectiveScan': {
      const [heads, width, n] = shapeOf(node.logA) as [number, number, number];
      return scanState(node.state, heads * width, n);
    }
    default:
      return undefined;
  }
}
