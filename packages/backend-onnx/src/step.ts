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
import { type Plan, planFor, type StepDevice } from './plan.js';
import { type Recorded, Recorder } from './record.js';

/** `run` checks and records; `submit` has everything computed, with one message to the computing thread. */
export class OnnxStep implements Step {
  readonly #device: StepDevice;
  readonly #batch: StepBatch;
  readonly #values: Recorder;
  #recorded: Recorded[] | undefined = [];
  #gone = false;

  constructor(batch: StepBatch, values: Named<DeviceBuffer>, device: StepDevice) {
    this.#device = device;
    this.#batch = batch;
    this.#values = new Recorder(batch, values, device.valuePools, computeType(device.binding.dialect));
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
    const { given, made } = this.#values;
    for (const buffer of [...given, ...made]) buffer.hold();
    try {
      await this.#device.order.execute((progress) => this.#execute(recorded, progress));
    } finally {
      for (const buffer of [...made].reverse()) buffer.letGo();
    }
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#recorded = undefined;
    this.#values.dispose();
  }

  async #execute(runs: readonly Recorded[], { idle, begun }: Progress): Promise<void> {
    const { binding, pool, valuePools } = this.#device;
    const plan = await this.#prepared(runs, idle);
    plan.busy = true;
    try {
      await binding.execute(plan.commands, begun);
    } finally {
      plan.busy = false;
    }
    for (const each of [pool, ...valuePools.all]) each.trim();
  }

  async #prepared(runs: readonly Recorded[], idle: () => Promise<void>): Promise<Plan> {
    const { plans } = this.#device;
    const { made, given } = this.#values;
    try {
      const positions = this.#positions(runs);
      const known = plans.renewed(runs, made, positions);
      if (known) return known;
      await idle();
      return await planFor(this.#device, runs, made, positions);
    } finally {
      // What is executed later writes to their memory later.
      for (const buffer of given) buffer.letGo();
    }
  }

  /** Tokens that tables must serve: of the longest row after this step, or of every cache where steps may be replayed. */
  #positions(runs: readonly Recorded[]): number {
    const longest = Math.max(...this.#batch.rows.map(({ past, count }) => past + count));
    if (!this.#device.binding.dialect.replays) return longest;
    const caches = runs.flatMap(({ states }) => Object.values(states).map(({ store }) => store.capacity));
    return Math.max(longest, ...caches.filter(Number.isFinite));
  }
}
