import { DslaError, elementCount, fromFloat16, type HostTensor, type Weight, type WeightSource } from '@dsla/spec';
import type { Binding, Memory, Tensor } from './binding/binding.js';
import type { Dialect } from './dialect.js';
import { type Joint, jointShape, readJoint } from './joint.js';
import type { Derivation, PartDerivation } from './lowering.js';
import type { Pool } from './pool.js';
import { elementBytes } from './protobuf.js';
import { blockSize } from './quantise.js';

/** A layer's claim on a weight. */
export interface WeightClaim {
  readonly tensor: Tensor;
  release(): void;
}

interface Entry {
  readonly weight: Weight;
  users: number;
  /** Shape in the checkpoint. */
  readonly shape: readonly number[];
  readonly loading: Promise<Tensor>;
}

/** The weights of a device, each held once and shared by name among its layers. */
export class WeightTable {
  readonly #pool: Pool;
  readonly #binding: Pick<Binding, 'dialect' | 'ready' | 'run'>;
  readonly #type: Dialect['compute'];
  readonly #entries = new Map<string, Entry>();
  /** What lies side by side, by its own name and by those of its members. */
  readonly #joints = new Map<Weight, Joint>();

  /** `type`: of what is held as it is; what is derived is float. */
  constructor(pool: Pool, binding: Pick<Binding, 'dialect' | 'ready' | 'run'>) {
    this.#pool = pool;
    this.#binding = binding;
    this.#type = binding.dialect.compute;
  }

  /** Has weights lie side by side from now on; false where one of them is held elsewhere. */
  join(joint: Joint): boolean {
    const held = [...this.#entries.values()];
    const free = joint.members.every((member) => {
      const known = this.#joints.get(member);
      return known ? known.name === joint.name : !held.some(({ weight }) => weight === member);
    });
    if (free) for (const name of [joint.name, ...joint.members]) this.#joints.set(name, joint);
    return free;
  }

  /** @throws DslaError E_CONFIG when the name is held already with another shape, or the source breaks its promise. */
  async acquire(weight: Weight, derivation: Derivation | undefined, source: WeightSource): Promise<WeightClaim> {
    const joint = this.#joints.get(weight);
    if (!joint || joint.name === weight || (derivation && !derivation.view))
      return await this.#whole(weight, derivation, source, joint);
    const { tensor, release } = await this.#whole(joint.name, derivation, source, joint);
    const dims = derivation ? derivation.shape : (shape: readonly number[]) => shape;
    const shapes = joint.members.map((member) => source.spec(member).shape);
    const [shape, before] = [source.spec(weight).shape, shapes.slice(0, joint.members.indexOf(weight))];
    const rows = before.reduce((sum, [first]) => sum + first!, 0);
    const offset = tensor.offset + elementCount(dims([rows, ...shape.slice(1)])) * elementBytes[tensor.type];
    return { tensor: { ...tensor, offset, dims: dims(shape) }, release };
  }

  async #whole(
    weight: Weight,
    derivation: Derivation | undefined,
    source: WeightSource,
    joint: Joint | undefined,
  ): Promise<WeightClaim> {
    const key = derivation ? `${weight} ${derivation.name}` : weight;
    const shapeOf = (name: Weight): readonly number[] => source.spec(name).shape;
    const whole = joint?.name === weight ? joint : undefined;
    const shape = whole ? jointShape(whole.members, shapeOf) : shapeOf(weight);
    let entry = this.#entries.get(key);
    if (!entry) {
      const read = (as: 'f32' | 'f16'): Promise<HostTensor> =>
        whole ? readJoint(whole, source, as) : source.read(weight, as);
      entry = { weight, users: 0, shape, loading: this.#load(weight, shape, derivation, read) };
      this.#entries.set(key, entry);
    }
    checkShape(weight, entry.shape, shape);
    entry.users += 1;
    try {
      const tensor = await entry.loading;
      const { view } = derivation ?? {};
      const part = view && { type: view.type, offset: view.offset(shape), dims: derivation!.shape(shape) };
      return { tensor: { ...tensor, ...part }, release: () => this.#release(key, entry, tensor) };
    } catch (error) {
      this.#release(key, entry);
      throw error;
    }
  }

  #release(key: string, entry: Entry, tensor?: Tensor): void {
    entry.users -= 1;
    if (entry.users > 0) return;
    this.#entries.delete(key);
    if (tensor) this.#pool.give(tensor.memory);
  }

  async #load(
    weight: Weight,
    shape: readonly number[],
    derivation: Derivation | undefined,
    read: (as: 'f32' | 'f16') => Promise<HostTensor>,
  ): Promise<Tensor> {
    // Parts are made from the numbers that would be held.
    const type = derivation && !derivation.view ? 'float' : this.#type;
    const host = await read(type === 'float' ? 'f32' : 'f16');
    checkShape(weight, host.shape, shape);
    const typed = type === 'float' ? host.data instanceof Float32Array : host.data instanceof Uint16Array;
    if (!typed || host.data.length !== elementCount(shape))
      throw new DslaError('E_CONFIG', {
        where: `weight ${weight}`,
        rule: `must be read as ${elementCount(shape)} ${type === 'float' ? 'float32' : 'float16'} numbers`,
        got: `${host.data.length} of ${host.dtype}`,
      });
    const numbers = host.data as Float32Array | Uint16Array;
    const where = `weight ${weight}`;
    const memory =
      (derivation?.view && (await this.#onDevice(numbers, derivation.view, shape, where))) ??
      (await this.#written(derived(numbers, derivation, shape), where));
    return derivation
      ? { memory, offset: 0, type: 'float', dims: derivation.shape(shape) }
      : { memory, offset: 0, type, dims: shape };
  }

  async #written(data: ArrayBufferView, where: string): Promise<Memory> {
    return await this.#filled(data.byteLength, where, (memory) => memory.write(data));
  }

  /** Memory that is given back where it cannot be filled. */
  async #filled(bytes: number, where: string, fill: (memory: Memory) => Promise<void> | void): Promise<Memory> {
    const memory = this.#pool.take(bytes, where);
    try {
      await fill(memory);
      return memory;
    } catch (error) {
      this.#pool.give(memory);
      throw error;
    }
  }

  /** What is made of numbers by the device itself; undefined where it has no operators of our own. */
  async #onDevice(
    data: Float32Array | Uint16Array,
    { operator, bytes }: PartDerivation['view'],
    shape: readonly number[],
    where: string,
  ): Promise<Memory | undefined> {
    const { run } = this.#binding;
    if (!run || !(await this.#binding.ready([operator]))) return undefined;
    const blocks = new Map([['blocks', data.length / blockSize]]);
    const numbers = await this.#written(data, where);
    try {
      return await this.#filled(bytes(shape), where, (memory) => run(operator, [numbers], [memory], blocks));
    } finally {
      this.#pool.give(numbers);
    }
  }
}

function derived(
  data: Float32Array | Uint16Array,
  derivation: Derivation | undefined,
  shape: readonly number[],
): ArrayBufferView {
  if (!derivation) return data;
  if (derivation.view) return derivation.view.make(data);
  return derivation.apply(data instanceof Uint16Array ? fromFloat16(data) : data, shape);
}

function checkShape(weight: Weight, got: readonly number[], want: readonly number[]): void {
  if (got.join() === want.join()) return;
  throw new DslaError('E_CONFIG', {
    where: `weight ${weight}`,
    rule: `must be [${want.join(', ')}] everywhere`,
    got,
    cure: 'Give different weights different names.',
  });
}
