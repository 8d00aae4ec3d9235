import {
  type AttentionLayer,
  type DeviceBuffer,
  type Named,
  type StateStore,
  type Step,
  type StepBatch,
  throwIfAborted,
} from '@dsla/spec';
import type { Binding, Commands } from './binding/binding.js';
import { disposed, invalid } from './errors.js';
import { Frame } from './frame.js';
import { HostInputs } from './host-inputs.js';
import { identityOf, type Launch, launchesOf, tensorOf } from './launch.js';
import { OnnxLayer } from './layer.js';
import type { Order } from './order.js';
import type { Pool } from './pool.js';
import { type Recorded, Recorder } from './record.js';
import type { Tables } from './tables.js';

/** What a step uses of its device. */
export interface StepDevice {
  readonly binding: Binding;
  readonly pool: Pool;
  /** For what the host writes before a step runs: the blocks of `pool` pass from run to run within it. */
  readonly hostPool: Pool;
  readonly order: Order;
  readonly tables: Tables;
}

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
    this.#values = new Recorder(batch, values, device.pool);
  }

  run(layer: AttentionLayer, states: Named<StateStore>, rows?: readonly number[]): void {
    if (this.#gone) throw disposed('step');
    if (!this.#recorded) throw invalid('step', 'layers must be run before submit', layer.graph.name);
    if (!(layer instanceof OnnxLayer)) throw invalid('run', 'the layer must be one of this backend', typeof layer);
    if (layer.disposed) throw disposed(`layer ${layer.graph.name}`);
    this.#recorded.push(this.#values.record(layer, states, rows));
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
    await this.#device.order.run(() => this.#execute(recorded));
  }

  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#recorded = undefined;
    this.#device.order.after(() => this.#values.dispose());
  }

  async #execute(recorded: readonly Recorded[]): Promise<void> {
    const { binding, hostPool } = this.#device;
    const work = recorded.map((run) => ({ run, launches: launchesOf(run) }));
    const kernels = new Set(work.flatMap(({ launches }) => launches.map(({ kernel }) => kernel)));
    for (const kernel of kernels) if (!kernel.ready) await kernel.prepare();
    const host = new HostInputs(hostPool);
    try {
      const commands = binding.commands();
      for (const { run, launches } of work) this.#command(commands, run, launches, host);
      await binding.execute(commands);
    } finally {
      host.release();
      for (const kernel of kernels) kernel.trim();
    }
  }

  #command(commands: Commands, run: Recorded, launches: readonly Launch[], host: HostInputs): void {
    const { tables, pool } = this.#device;
    const frame = new Frame(run, pool);
    const supplies = { host, tables, positions: this.#positions };
    try {
      for (const copy of frame.before) commands.copy(...copy);
      for (const launch of launches) {
        const identity = identityOf(launch, frame, run, supplies);
        const bound = launch.kernel.bind(identity, (port) => tensorOf(port, launch, frame, run, supplies));
        commands.run(bound, launch);
      }
      for (const copy of frame.after) commands.copy(...copy);
    } finally {
      frame.release();
    }
  }

  /** Longest row after this step, in tokens. */
  get #positions(): number {
    return Math.max(...this.#batch.rows.map(({ past, count }) => past + count));
  }
}
