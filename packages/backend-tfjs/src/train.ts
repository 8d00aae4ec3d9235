import {
  type DeviceBuffer,
  DslaError,
  f32,
  type Gradients,
  type HostTensor,
  type LayerGraph,
  type Loss,
  type Named,
  type SequenceBatch,
  type TrainableLayer,
  type Value,
  type Weight,
  type WeightSource,
  weightsOf,
} from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { TfjsBuffer, tensorOf } from './buffer.js';
import { use } from './engines.js';
import type { Frame } from './frame.js';
import { compile, TfjsLayer } from './layer.js';
import { losses as known } from './losses.js';
import { invalid } from './memory.js';
import { backwardPass, forwardPass, Live, type Plan, planOf, Slopes } from './pass.js';
import { type Bench, checkIds } from './step.js';
import { placesOf } from './values.js';
import type { Weights } from './weights.js';

/** As `compile`, for training. */
export async function compileTrainable(
  graph: LayerGraph,
  source: WeightSource,
  trainable: readonly Weight[],
  weights: Weights,
  bench: Bench,
  signal?: AbortSignal,
): Promise<TrainableLayer> {
  const layer = await compile(graph, source, weights, signal);
  try {
    const there = weightsOf(layer.tape);
    const stranger = trainable.find((name) => !there.includes(name));
    if (stranger !== undefined)
      throw invalid(`train ${graph.name}`, 'a trainable weight must be one of the tape', stranger);
    const fold = layer.tape.nodes.findIndex(({ op }) => op === 'foldState');
    if (fold >= 0) {
      throw new DslaError('E_UNSUPPORTED', {
        where: `train ${graph.name} node ${fold} (foldState)`,
        rule: 'a tape to train must not fold: its rows start with empty states',
      });
    }
    placesOf(layer.tape, () => 'token');
    return new TfjsTrainable(layer, trainable, weights, bench);
  } catch (error) {
    layer[Symbol.dispose]();
    throw error;
  }
}

class TfjsTrainable extends TfjsLayer implements TrainableLayer {
  readonly trainable: readonly Weight[];
  readonly #weights: Weights;
  readonly #bench: Bench;
  readonly #plan: Plan;
  /** Value of every named output. */
  readonly #outputs: ReadonlyMap<string, Value>;

  /** Takes the layer over. */
  constructor(layer: TfjsLayer, trainable: readonly Weight[], weights: Weights, bench: Bench) {
    super(layer.graph, layer.tape, layer.widths, weights);
    this.trainable = trainable;
    this.#weights = weights;
    this.#bench = bench;
    this.#plan = planOf(layer.tape, trainable);
    this.#outputs = new Map(layer.tape.nodes.flatMap((node) => (node.op === 'output' ? [[node.name, node.x]] : [])));
  }

  forward(batch: SequenceBatch): Named<DeviceBuffer> {
    const live = new Live();
    try {
      const values = this.#forward(batch, this.#begin(batch), planOf(this.tape, []), live);
      const own = [...this.#outputs].map(([name, value]) => {
        return [name, new TfjsBuffer(`output ${name}`, tf.clone(values[value]!), this.#bench.holder)] as const;
      });
      return Object.fromEntries(own);
    } finally {
      live.freeAll();
    }
  }

  async gradients(batch: SequenceBatch, losses: readonly Loss[]): Promise<Gradients> {
    const frame = this.#begin(batch);
    this.#checkLosses(losses);
    const live = new Live();
    try {
      const values = this.#forward(batch, frame, this.#plan, live);
      const slopes = new Slopes(live);
      const terms: number[] = [];
      for (const loss of losses) terms.push(await this.#judge(loss, values, slopes, live));
      use(this.#bench.engine); // another device may have run while this one waited
      backwardPass(this.tape, this.#plan, frame, values, slopes, live);
      const byWeight: Record<Weight, HostTensor> = {};
      for (const name of this.trainable) byWeight[name] = await this.#gradient(name, slopes.get(name));
      const loss = terms.reduce((sum, term, index) => sum + term * (losses[index]!.weight ?? 1), 0);
      return { loss, terms, byWeight };
    } finally {
      live.freeAll();
    }
  }

  async read(weight: Weight): Promise<HostTensor> {
    this.check();
    if (!weightsOf(this.tape).includes(weight))
      throw invalid(`read ${this.graph.name}`, 'the weight must be one of the tape', weight);
    return await this.#weights.read(weight);
  }

  assign(weights: Named<HostTensor>): void {
    this.check();
    for (const [name, value] of Object.entries(weights)) {
      if (!this.trainable.includes(name))
        throw invalid(`assign ${this.graph.name}`, `must be a trainable weight: ${this.trainable.join(', ')}`, name);
      this.#weights.checkValue(name, value);
    }
    for (const [name, value] of Object.entries(weights)) this.#weights.assign(name, value);
  }

  /** Checks a batch. */
  #begin({ rows, tokens, ids }: SequenceBatch): Frame {
    this.check();
    const where = `train ${this.graph.name}`;
    for (const [name, size] of Object.entries({ rows, tokens }))
      if (!Number.isInteger(size) || size < 1) throw invalid(where, `${name} must be an integer of at least 1`, size);
    const embeds = this.tape.nodes.filter((node) => node.op === 'embed');
    if ((ids || embeds.length > 0) && ids?.length !== rows * tokens)
      throw invalid(where, `ids must hold ${rows} x ${tokens} tokens`, ids?.length);
    for (const { table } of embeds) checkIds(ids!, this.#weights.shape(table)[0]!, where);
    use(this.#bench.engine);
    return { ...this.#bench.frame, ids: ids ?? new Int32Array(0), counts: new Array<number>(rows).fill(tokens) };
  }

  #forward(batch: SequenceBatch, frame: Frame, plan: Plan, live: Live): (Tensor | undefined)[] {
    const length = batch.rows * batch.tokens;
    const input = (name: string): Tensor => {
      const where = `train ${this.graph.name} input ${name}`;
      const given = batch.inputs?.[name];
      if (!given) throw invalid(where, 'must be given', Object.keys(batch.inputs ?? {}));
      const node = this.tape.nodes.find((one) => one.op === 'input' && one.name === name) as { width: number };
      return onDevice(given, [length, node.width], where, live);
    };
    return forwardPass(this.tape, plan, frame, input, live);
  }

  /** One term of the loss; its gradient goes to `slopes`. */
  async #judge(loss: Loss, values: readonly (Tensor | undefined)[], slopes: Slopes, live: Live): Promise<number> {
    const weight = loss.weight ?? 1;
    const valueNamed = (output: string): Value => this.#outputs.get(output)!;
    if (loss.kind === 'host') {
      const outputs: Record<string, HostTensor> = {};
      for (const name of loss.outputs) {
        const tensor = values[valueNamed(name)]!;
        outputs[name] = f32(tensor.shape, Float32Array.from(await tensor.data()));
      }
      const judged = loss.of(outputs);
      use(this.#bench.engine);
      for (const [name, gradient] of Object.entries(judged.gradients)) {
        if (!outputs[name]) throw invalid('host loss', `gradients must be by ${loss.outputs.join(', ')}`, name);
        const slope = onDevice(gradient, outputs[name].shape, `host loss gradient by ${name}`, live);
        slopes.add(valueNamed(name), tf.mul(slope, weight));
      }
      return judged.loss;
    }
    const value = valueNamed(loss.output);
    const output = values[value]!;
    const goal = onDevice(
      loss.kind === 'mse' ? loss.target : loss.teacher,
      output.shape,
      `loss ${loss.kind} of ${loss.output}`,
      live,
    );
    use(this.#bench.engine);
    const [term, gradient] = tf.tidy(() => {
      const judged = known[loss.kind](output, goal);
      return [judged.loss, tf.mul(judged.gradient, weight)] as [Tensor, Tensor];
    });
    live.hold(term);
    slopes.add(value, gradient);
    return (await term.data())[0]!;
  }

  async #gradient(name: Weight, found: Tensor | undefined): Promise<HostTensor> {
    const shape = this.#weights.shape(name);
    if (!found) return f32(shape, new Float32Array(tf.util.sizeFromShape([...shape])));
    return f32(shape, Float32Array.from(await found.data()));
  }

  #checkLosses(losses: readonly Loss[]): void {
    if (losses.length === 0) throw invalid(`train ${this.graph.name}`, 'there must be a loss', 'none');
    for (const loss of losses)
      for (const name of loss.kind === 'host' ? loss.outputs : [loss.output])
        if (!this.#outputs.has(name))
          throw invalid(`loss ${loss.kind}`, `must be of an output: ${[...this.#outputs.keys()].join(', ')}`, name);
  }
}

/** A tensor of a given shape: the buffer's own, or an upload that is freed with the call. */
function onDevice(given: DeviceBuffer | HostTensor, shape: readonly number[], where: string, live: Live): Tensor {
  if (given.shape.join() !== shape.join() || given.dtype !== 'f32')
    throw invalid(where, `must be f32 [${shape.join(', ')}]`, `${given.dtype} [${given.shape.join(', ')}]`);
  if (!('data' in given)) return tensorOf(given, where);
  if (given.data.length !== tf.util.sizeFromShape([...shape]))
    throw invalid(where, 'data must fill its shape', given.data.length);
  return live.hold(tf.tensor(Float32Array.from(given.data), [...shape]));
}
