import type { Binding, Bound, Memory, Session, Tensor } from './binding/binding.js';
import { disposed } from './errors.js';
import type { Port } from './lowering.js';
import type { Model } from './program.js';

/** Bindings kept a kernel: a decode step over the same slots finds all of its own. */
const kept = 256;

/** A model with its session, which is made at the first use, and the bindings it has run with. */
export class Kernel {
  readonly model: Model;
  readonly #binding: Binding;
  readonly #weights: ReadonlyMap<string, Tensor>;
  /** Ports whose tensors change from run to run. */
  readonly #varying: readonly Port[];
  readonly #bindings = new Map<string, Entry>();
  #session: Session | undefined;
  #gone = false;

  /** `weights` by port name. */
  constructor(model: Model, binding: Binding, weights: ReadonlyMap<string, Tensor>) {
    this.model = model;
    this.#binding = binding;
    this.#weights = weights;
    this.#varying = model.inputs.filter(({ name }) => !weights.has(name));
  }

  get ready(): boolean {
    return this.#session !== undefined;
  }

  /** @throws DslaError E_DEVICE */
  async prepare(): Promise<void> {
    if (this.#gone) throw disposed(`layer ${this.model.name}`);
    this.#session ??= await this.#binding.session(this.model.bytes, this.model.name);
  }

  /** The run with these tensors: one seen before, or a new one. */
  bind(tensorOf: (port: Port) => Tensor): Bound {
    if (!this.#session) throw disposed(`layer ${this.model.name}`);
    const inputs = this.#varying.map(tensorOf);
    const outputs = this.model.outputs.map(tensorOf);
    const key = [...inputs, ...outputs].map(({ memory, offset, dims }) => `${memory.id}+${offset}[${dims}]`).join();
    let entry = this.#bindings.get(key);
    if (!entry) {
      const named = (ports: readonly Port[], tensors: readonly Tensor[]) =>
        ports.map(({ name }, index) => [name, tensors[index]!] as const);
      const bound = this.#session.bind(
        new Map([...this.#weights, ...named(this.#varying, inputs)]),
        new Map(named(this.model.outputs, outputs)),
      );
      const memories = new Set([...inputs, ...outputs].map(({ memory }) => memory));
      entry = new Entry(bound, memories, () => this.#bindings.delete(key));
      this.#bindings.set(key, entry);
    }
    return entry.bound;
  }

  /** Forgets the oldest bindings; not while one of them is about to run. */
  trim(): void {
    for (const entry of this.#bindings.values()) {
      if (this.#bindings.size <= kept) break;
      entry.dispose();
    }
  }

  dispose(): void {
    this.#gone = true;
    for (const entry of this.#bindings.values()) entry.dispose();
    this.#session?.dispose();
    this.#session = undefined;
  }
}

/** A binding that goes with the first of its memories. */
class Entry {
  readonly bound: Bound;
  readonly #memories: ReadonlySet<Memory>;
  readonly #forget: () => void;

  constructor(bound: Bound, memories: ReadonlySet<Memory>, forget: () => void) {
    this.bound = bound;
    this.#memories = memories;
    this.#forget = forget;
    for (const memory of memories) memory.bound.add(this);
  }

  dispose(): void {
    for (const memory of this.#memories) memory.bound.delete(this);
    this.#forget();
    this.bound.dispose();
  }
}
