import { referenceBackend } from '@dsla/reference';
import type { HostTensor, LayerGraph, StateSpec, StateStore, WeightSource } from '@dsla/spec';
import { type ModelDescription, type Plan, tapesOf } from '../src/index.js';

/** A model on the reference backend, one sequence, as plainly as can be: what a runtime does, without its cares. */
export interface Runner {
  /** Feeds the next tokens under a plan; logits of each, [count, vocabulary]. */
  feed(ids: Int32Array, plan?: Plan): Promise<Float32Array>;
  /** Rebuilds the mixer's state of a layer from its KV cache. */
  fold(mixer: string, layer: number): Promise<void>;
  /** Parts of a state. */
  state(name: string): Promise<readonly HostTensor[]>;
}

export async function runner(description: ModelDescription, weights: WeightSource, capacity: number): Promise<Runner> {
  const device = await referenceBackend.open();
  const specs = new Map<string, StateSpec>();
  for (const { states } of tapesOf(description)) for (const spec of states) specs.set(spec.name, spec);
  const stores: Record<string, StateStore> = {};
  for (const [name, spec] of specs) stores[name] = device.createState(spec, 1, capacity);
  const compile = (graph: LayerGraph) => device.compile(graph, weights);
  let past = 0;
  return {
    async feed(ids, plan = []) {
      using step = device.beginStep({ ids, rows: [{ slot: 0, past, count: ids.length }] });
      for (const { layer, versions } of description.segments) {
        const mixer = layer === undefined ? undefined : plan[layer];
        step.run(await compile((mixer && versions[mixer]) || versions.default), stores);
      }
      step.run(await compile(description.headAll), {});
      await step.submit();
      past += ids.length;
      return (await device.download(step.value('logits'))).data as Float32Array;
    },
    async fold(mixer, layer) {
      using step = device.beginStep({ ids: new Int32Array(0), rows: [{ slot: 0, past, count: 0 }] });
      step.run(await compile(description.folds[mixer]![layer]!), stores);
      await step.submit();
    },
    state: (name) => stores[name]!.export(0),
  };
}
