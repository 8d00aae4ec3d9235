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
  throwIfAborted,
  type Weight,
  type WeightSource,
  weightsOf,
} from '@dsla/spec';
import type { Program } from './interpret.js';
import { invalid, type Tensor } from './tensor.js';
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

/** Every state must be laid out as its node reads it. */
function checkStates(graph: LayerGraph, shapeOf: (name: Weight) => readonly number[]): void {
  const describe = ({ parts }: StateSpec) =>
    parts.map(({ name, dtype, shape }) => `${name} ${dtype} [${shape.join(', ')}]`).join('; ');
  graph.nodes.forEach((node, index) => {
    const want = stateOf(node, shapeOf);
    if (!want) return;
    const got = graph.states.find(({ name }) => name === want.name)!;
    if (describe(got) !== describe(want))
      throw invalid(
        `${graph.name} node ${index} (${node.op})`,
        `state ${want.name} must hold ${describe(want)}`,
        describe(got),
      );
  });
}

/** The state that a node writes. */
function stateOf(node: Node, shapeOf: (name: Weight) => readonly number[]): StateSpec | undefined {
  switch (node.op) {
    case 'softmaxAttention':
      return kvState(node.state, node);
    case 'dualLinearAttention':
    case 'foldState': {
      const name = node.op === 'foldState' ? node.to : node.state;
      const map = node.form.featureMap;
      return dualState(name, node.form, map && shapeOf(map.key)[1]);
    }
    case 'causalConv': {
      const [channels, , kernel] = shapeOf(node.weight) as [number, number, number];
      return convState(node.state, channels, kernel);
    }
    case 'selectiveScan': {
      const [heads, width, n] = shapeOf(node.logA) as [number, number, number];
      return scanState(node.state, heads * width, n);
    }
    default:
      return undefined;
  }
}
