import {
  type AttentionLayer,
  type DeviceBuffer,
  type Draw,
  type Named,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
} from '@dsla/spec';
import { computeType } from './dialect.js';
import { disposed, invalid } from './errors.js';
import { OnnxLayer } from './layer.js';
import type { Progress } from './order.js';
import { planFor, type StepDevice } from './plan.js';
import { type Recorded, Recorder } from './record.js';

/** `run` checks and records; `submit` has everything computed, with one message to the computing thread. */
export class OnnxStep implements Step {
  readonly #device: StepDevice;
  readonly #batch: StepBatch;
  readonly #values: Recorder;
  #recorded: Recorded[] | undefined = [];
  /** It is being computed, or will be. */
  #computing = false;
  #gone = false;

  constructor(batch: StepBatch, values: Named<DeviceBuffer>, device: StepDevice) {
    this.#device = device;
    this.#batch = batch;
    this.#values = new Recorder(batch, values, device.pool, computeType(device.binding.dialect));
  }

  run(layer: AttentionLayer, states: Named<StateStore>, rows?: readonly number[]): void {
    if (this.#gone) throw disposed('step');
    if (!this.#recorded) throw invalid('step', 'layers must be run before submit', layer.graph.name);
    if (!(layer instanceof OnnxLayer)) throw invalid('run', 'the layer must be one of this backend', typeof layer);
    if (layer.disposed) throw disposed(`layer ${layer.graph.name}`);
    this.#recorded.push(this.#values.record(layer, states, rows));
  }

  draw(draws: readonly Draw[]): void {
    if (this.#gone) throw disposed('step');
    if (!this.#recorded) throw invalid('step', 'tokens must be drawn before submit', 'a draw after it');
    const { drawings } = this.#device;
    this.#recorded.push(this.#values.draw(draws, (vocabulary) => drawings.for(vocabulary, draws)));
  }

  value(name: string): DeviceBuffer {
    if (this.#gone) throw disposed('step');
    return this.#values.buffer(name);
  }

  async submit(signal?: AbortSignal): Promise<void> {
    if (this.#gone) throw disposed('step');
    throwIfAborted(signal, 'submit');
    if (!this.#recorded) throw invalid('step', 'must be submitted once', 'a second submit');
    const recorded = this.#recorded;
    this.#recorded = undefined;
    const { order } = this.#device;
    this.#computing = true;
    for (const buffer of this.#values.given) buffer.hold();
    try {
      await order.execute((progress) => this.#execute(recorded, progress));
    } finally {
      this.#computing = false;
      for (const buffer of this.#values.given) buffer.letGo();
    }
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#recorded = undefined;
    const { order } = this.#device;
    const dispose = (): void => this.#values.dispose();
    if (this.#computing) order.after(dispose);
    else order.afterReads(dispose);
  }

  async #execute(runs: readonly Recorded[], { idle, begun }: Progress): Promise<void> {
    const { binding, plans, pool } = this.#device;
    const { made } = this.#values;
    const positions = this.#positions(runs);
    let plan = plans.renewed(runs, made, positions);
    if (!plan) {
      await idle();
      plan = await planFor(this.#device, runs, made, positions);
      plans.add(plan);
    }
    plan.busy = true;
    try {
      await binding.execute(plan.commands, begun);
    } finally {
      plan.busy = false;
    }
    pool.trim();
  }

  /** Tokens that tables must serve: of the longest row after this step, or of every cache where steps may be replayed. */
  #positions(runs: readonly Recorded[]): number {
    const longest = Math.max(...this.#batch.rows.map(({ past, count }) => past + count));
    if (!this.#device.binding.dialect.replays) return longest;
    const caches = runs.flatMap(({ states }) => Object.values(states).map(({ store }) => store.capacity));
    return Math.max(longest, ...caches.filter(Number.isFinite));
  }
}
