import type { Binding, Bound, Pack, Session, Tensor } from './binding/binding.js';
import { disposed } from './errors.js';
import type { Port } from './lowering.js';
import type { Model } from './model.js';

/** Bindings kept a kernel: a decode step over the same slots finds all of its own. */
const kept = 256;

/** A model with its session, which is made at the first use, and the bindings it has run with. */
export class Kernel {
  readonly model: Model;
  readonly #binding: Binding;
  readonly #pack: Pack;
  readonly #weights: ReadonlyMap<string, Tensor>;
  /** Weights that are inputs. */
  readonly #fixed: readonly (readonly [string, Tensor])[];
  /** Ports whose tensors change from run to run: inputs, then outputs. */
  readonly ports: readonly Port[];
  /** By a hash of what they bind. */
  readonly #bindings = new Map<number, Entry[]>();
  #count = 0;
  #session: Session | undefined;
  #gone = false;

  /** `weights` by port name. */
  constructor(model: Model, binding: Binding, pack: Pack, weights: ReadonlyMap<string, Tensor>) {
    this.model = model;
    this.#binding = binding;
    this.#pack = pack;
    this.#weights = weights;
    this.#fixed = model.inputs.flatMap(({ name }) => (weights.has(name) ? [[name, weights.get(name)!] as const] : []));
    this.ports = [...model.inputs.filter(({ name }) => !weights.has(name)), ...model.outputs];
  }

  get ready(): boolean {
    return this.#session !== undefined;
  }

  /** @throws DslaError E_DEVICE */
  async prepare(): Promise<void> {
    if (this.#gone) throw disposed(`layer ${this.model.name}`);
    if (this.#session) return;
    const { name, matrices, operators } = this.model;
    const constants = new Map(matrices.map((port) => [port.name, this.#weights.get(port.name)!]));
    this.#session = await this.#binding.session({
      model: this.model.encode(),
      constants,
      operators,
      pack: this.#pack,
      where: name,
    });
  }

  /** The run with these tensors: one seen before, or a new one. Equal identities mean equal tensors. */
  bind(identity: readonly number[], tensorOf: (port: Port) => Tensor): Bound {
    if (!this.#session) throw disposed(`layer ${this.model.name}`);
    const hash = hashOf(identity);
    let entry = this.#bindings.get(hash)?.find((each) => equal(each.identity, identity));
    if (!entry) {
      const tensors = this.ports.map(tensorOf);
      const named = this.ports.map(({ name }, index) => [name, tensors[index]!] as const);
      const inputs = named.length - this.model.outputs.length;
      const bound = this.#session.bind(
        new Map([...this.#fixed, ...named.slice(0, inputs)]),
        new Map(named.slice(inputs)),
      );
      entry = new Entry(bound, identity, tensors, (gone) => this.#forget(hash, gone));
      this.#bindings.set(hash, [...(this.#bindings.get(hash) ?? []), entry]);
      this.#count += 1;
    }
    return entry.bound;
  }

  /** Forgets the oldest bindings; not while one of them is about to run. */
  trim(): void {
    for (const [entry] of this.#bindings.values()) {
      if (this.#count <= kept) break;
      entry!.dispose();
    }
  }

  dispose(): void {
    this.#gone = true;
    for (const entry of [...this.#bindings.values()].flat()) entry.dispose();
    this.#session?.dispose();
    this.#session = undefined;
  }

  #forget(hash: number, gone: Entry): void {
    const left = this.#bindings.get(hash)!.filter((entry) => entry !== gone);
    if (left.length > 0) this.#bindings.set(hash, left);
    else this.#bindings.delete(hash);
    this.#count -= 1;
  }
}

/** A binding that goes with the first of its memories. */
class Entry {
  readonly bound: Bound;
  readonly identity: readonly number[];
  readonly #tensors: readonly Tensor[];
  readonly #forget: (entry: Entry) => void;

  constructor(bound: Bound, identity: readonly number[], tensors: readonly Tensor[], forget: (entry: Entry) => void) {
    this.bound = bound;
    this.identity = identity;
    this.#tensors = tensors;
    this.#forget = forget;
    for (const { memory } of tensors) memory.bound.add(this);
  }

  dispose(): void {
    for (const { memory } of this.#tensors) memory.bound.delete(this);
    this.#forget(this);
    this.bound.dispose();
  }
}

function equal(a: readonly number[], b: readonly number[]): boolean {
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return false;
  return a.length === b.length;
}

function hashOf(numbers: readonly number[]): number {
  let hash = 0;
  for (const number of numbers) hash = (Math.imul(hash, 31) + number) | 0;
  return hash;
}
