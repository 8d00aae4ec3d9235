import type { Binding, Bound, Commands, Memory } from './binding/binding.js';
import type { OnnxBuffer } from './buffer.js';
import type { Drawings } from './drawings.js';
import { Frame } from './frame.js';
import { HostInputs } from './host-inputs.js';
import { identityOf, type Launch, lastUses, launchesOf, type Supplies, tensorOf } from './launch.js';
import type { Table } from './lowering.js';
import type { Order } from './order.js';
import type { NamedPools, Pool } from './pool.js';
import type { Recorded } from './record.js';
import type { Tables } from './tables.js';

/** What a step uses of its device. */
export interface StepDevice {
  readonly binding: Binding;
  readonly pool: Pool;
  /** For named values, which may outlive their step: no plan uses their blocks for anything else. */
  readonly valuePools: NamedPools;
  /** For what the host writes before a step runs: the blocks of `pool` pass from run to run within it. */
  readonly inputPool: Pool;
  /** The same for sizes, which operators read on the host. */
  readonly sizePool: Pool;
  readonly order: Order;
  readonly tables: Tables;
  readonly drawings: Drawings;
  readonly plans: Plans;
}

/**
 * What the computing thread is to do for a step. A step that runs the same layers for the same rows and states, as the next
 * one in decoding does, renews its small inputs and is ready.
 */
export interface Plan {
  readonly commands: Commands;
  /** It is being executed. */
  busy: boolean;
  /** Blocks of the named values, as the step leaves them. */
  readonly named: readonly (readonly [Pool, Memory])[];
  /** Makes it serve another step; false, with nothing changed, where that step is not like the one it was made for. */
  renew(runs: readonly Recorded[], made: readonly OnnxBuffer[], positions: number): boolean;
  dispose(): void;
}

/** The last plans of a device: two, because a step may be prepared while the one before it, whose values are in use, computes. */
export class Plans {
  /** The one that was not used for longest first. */
  readonly #kept: Plan[] = [];

  /** One that serves the step. */
  renewed(runs: readonly Recorded[], made: readonly OnnxBuffer[], positions: number): Plan | undefined {
    const found = this.#kept.find((plan) => plan.renew(runs, made, positions));
    if (found) this.#kept.push(...this.#kept.splice(this.#kept.indexOf(found), 1));
    return found;
  }

  /** Makes one whose values do not lie where those of the last one do, so that both can be in use. Nothing is being executed. */
  make(make: () => Plan): Plan {
    const others = this.#kept.at(-1)?.named.filter(([pool, memory]) => pool.isIdle(memory)) ?? [];
    for (const [pool, memory] of others) pool.reborrow(memory);
    try {
      const plan = make();
      this.#add(plan);
      return plan;
    } finally {
      for (const [pool, memory] of others) pool.giveBack(memory);
    }
  }

  #add(plan: Plan): void {
    if (this.#kept.length === 2) this.#kept.shift()!.dispose();
    this.#kept.push(plan);
  }
}

/**
 * `made`: the named values that the step makes, which get their memory here; `positions`: its longest row, in tokens.
 * @throws DslaError E_DEVICE, E_MEMORY
 */
export async function planFor(
  device: StepDevice,
  runs: readonly Recorded[],
  made: readonly OnnxBuffer[],
  positions: number,
): Promise<Plan> {
  const launches = runs.map((run, index) => launchesOf(run, index));
  const kernels = new Set(launches.flat().map(({ kernel }) => kernel));
  for (const kernel of kernels) if (!kernel.ready) await kernel.prepare();
  for (const kernel of kernels) kernel.trim();
  return device.plans.make(() => new WorkingPlan(device, runs, launches, made, positions));
}

class WorkingPlan implements Plan {
  readonly commands: Commands;
  busy = false;
  readonly #device: StepDevice;
  readonly #runs: readonly Recorded[];
  readonly #host: HostInputs;
  readonly #bounds: Bound[] = [];
  /** Longest row that its tables serve, in tokens. */
  #positions = Number.POSITIVE_INFINITY;
  /** Blocks that hold something while the commands run. */
  readonly #temporary: Memory[] = [];
  /** Blocks that named values had for a while. */
  readonly #left: (readonly [Pool, Memory])[] = [];
  readonly named: readonly (readonly [Pool, Memory])[];

  constructor(
    device: StepDevice,
    runs: readonly Recorded[],
    launches: readonly (readonly Launch[])[],
    made: readonly OnnxBuffer[],
    positions: number,
  ) {
    this.#device = device;
    this.#runs = runs;
    this.commands = device.binding.commands();
    this.#host = new HostInputs(device.inputPool, device.sizePool, runs, this.commands);
    const supplies = {
      host: this.#host,
      table: (table: Table) => {
        const tensor = device.tables.get(table, positions);
        this.#positions = tensor.dims[0]!;
        return tensor;
      },
    };
    try {
      for (const [index, run] of runs.entries()) this.#add(run, launches[index]!, supplies);
    } finally {
      this.#host.keep();
    }
    this.named = made.map(({ pool, memory }) => [pool!, memory]);
  }

  renew(runs: readonly Recorded[], made: readonly OnnxBuffer[], positions: number): boolean {
    const { pool } = this.#device;
    const fits =
      !this.busy &&
      runs.length === this.#runs.length &&
      runs.every((run, index) => alike(run, this.#runs[index]!)) &&
      positions <= this.#positions &&
      this.#bounds.every(({ alive }) => alive) &&
      this.#temporary.every((memory) => pool.isIdle(memory)) &&
      [...this.named, ...this.#left].every(([own, memory]) => own.isIdle(memory)) &&
      this.#host.renew(runs);
    if (!fits) return false;
    if (this.#host.resized) this.commands.resized();
    for (const memory of this.#temporary) pool.use(memory);
    for (const [index, buffer] of made.entries()) {
      const [own, memory] = this.named[index]!;
      buffer.memory = memory;
      own.reborrow(memory);
    }
    return true;
  }

  dispose(): void {
    this.commands.dispose();
    this.#host.letGo();
  }

  #add(run: Recorded, launches: readonly Launch[], supplies: Supplies): void {
    const { commands } = this;
    const frame = new Frame(run, this.#device.pool);
    try {
      for (const copy of frame.before) commands.copy(...copy);
      const retired = lastUses(launches);
      for (const [at, launch] of launches.entries()) {
        const identity = identityOf(launch, frame, run, supplies);
        const bound = launch.kernel.bind(identity, (port) => tensorOf(port, launch, frame, run, supplies));
        this.#bounds.push(bound);
        commands.run(bound, launch);
        frame.retire(retired[at]!);
      }
      for (const copy of frame.after) commands.copy(...copy);
    } finally {
      this.#temporary.push(...frame.temporary);
      frame.release();
      this.#left.push(...frame.left);
    }
  }
}

/** The same layer for the same rows, in the same memory. */
function alike(a: Recorded, b: Recorded): boolean {
  if (a.layer !== b.layer || a.served.key !== b.served.key || given(a) || given(b)) return false;
  if (a.served.rows.length !== b.served.rows.length) return false;
  for (const [at, { slot, count }] of a.served.rows.entries()) {
    const other = b.served.rows[at]!;
    if (other.slot !== slot || other.count !== count) return false;
  }
  for (const name of Object.keys(a.states)) {
    const [own, others] = [a.states[name]!.parts, b.states[name]!.parts];
    if (own.some((parts, at) => parts !== others[at])) return false;
  }
  return true;
}

/** It reads what belongs to the caller, who may bring other memory next time. */
function given({ inputs }: Recorded): boolean {
  return inputs.some((value) => value.given);
}
