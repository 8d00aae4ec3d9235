import type { Draw } from '@dsla/spec';
import type { Binding } from './binding/binding.js';
import { drawingOf, drawModel, drawsOwn } from './draw.js';
import { Kernel } from './kernel.js';
import { OnnxLayer } from './layer.js';
import type { Order } from './order.js';

/** What draws tokens, made when it is first asked for and kept: by vocabulary and by what is asked for. */
export class Drawings {
  readonly #binding: Binding;
  readonly #order: Order;
  readonly #layers = new Map<string, OnnxLayer>();

  constructor(binding: Binding, order: Order) {
    this.#binding = binding;
    this.#order = order;
  }

  for(vocabulary: number, draws: readonly Draw[]): OnnxLayer {
    const { dialect } = this.#binding;
    const drawing = drawsOwn(dialect) ? undefined : drawingOf(draws);
    const key = JSON.stringify([vocabulary, drawing]);
    let layer = this.#layers.get(key);
    if (!layer) {
      const model = drawModel(vocabulary, drawing, dialect.compute);
      const graph = { name: 'draw', nodes: [], states: [] };
      const program = {
        graph,
        dialect,
        widths: [vocabulary, 1],
        shapeOf: () => [],
        inputs: [{ index: 0, name: 'logits', width: vocabulary }],
        outputs: [{ name: 'ids', value: 1 }],
        embeddings: [],
        folds: [],
        stages: [{ kind: 'shared' as const, model }],
      };
      const pack = this.#binding.pack();
      const kernels = new Map([[model, new Kernel(model, this.#binding, pack, new Map())]]);
      layer = new OnnxLayer(graph, program, kernels, pack, [], this.#order);
      this.#layers.set(key, layer);
    }
    return layer;
  }
}
