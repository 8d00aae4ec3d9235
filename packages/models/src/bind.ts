import { DslaError, elementCount, type HostTensor, type StorageType, toFloat16, type WeightSource } from '@dsla/spec';
import type { ModelDescription, WeightRef } from './model.js';

/** What a model needs of an open checkpoint; `Checkpoint` of @dsla/weights is one. */
export interface TensorReader {
  readonly tensors: ReadonlyMap<string, { readonly storage: string; readonly shape: readonly number[] }>;
  /** Values of a tensor, or of element `index` of its first axis, or of its rows start, start + step, ... */
  readFloats(
    name: string,
    options: { readonly as: 'f32' | 'f16' } & Pick<WeightRef, 'index' | 'rows'>,
  ): Promise<HostTensor>;
}

export interface BoundWeights extends WeightSource {
  /** Weights that no file holds and that start untuned. */
  readonly untuned: readonly string[];
  /** Tensors of the files that the model does not use; those known to be superfluous are left out. */
  readonly unexpected: readonly string[];
}

/**
 * Finds every weight of a description in a checkpoint. `conversion` holds trained mixers: it is asked first, and only for
 * weights of mixers. Reads nothing yet and keeps nothing.
 * @throws DslaError E_CONFIG that lists every tensor that is missing or has another shape than the configuration says.
 */
export function bindWeights(
  description: ModelDescription,
  checkpoint: TensorReader,
  conversion?: TensorReader,
): BoundWeights {
  const problems: string[] = [];
  const bound = new Map<string, Binding>();
  for (const [name, ref] of Object.entries(description.weights)) {
    const found = resolve(ref, conversion && ref.mixer !== undefined ? [conversion, checkpoint] : [checkpoint]);
    if (typeof found === 'string') problems.push(found);
    else bound.set(name, found);
  }
  if (problems.length > 0) refuse(description, problems);
  const find = (name: string): Binding => {
    const binding = bound.get(name);
    if (!binding)
      throw new DslaError('E_CONFIG', { where: description.architecture, rule: 'no such weight', got: name });
    return binding;
  };
  return {
    spec: (name) => {
      const { storage, shape } = find(name);
      return { storage, shape };
    },
    read: (name, as) => find(name).read(as),
    untuned: [...bound].filter(([, { untuned }]) => untuned).map(([name]) => name),
    unexpected: unexpected(description, checkpoint, conversion),
  };
}

interface Binding {
  readonly storage: StorageType;
  readonly shape: readonly number[];
  readonly untuned: boolean;
  read(as: 'f32' | 'f16'): Promise<HostTensor>;
}

/** Where a weight lies, or a sentence about what is wrong. */
function resolve(ref: WeightRef, readers: readonly TensorReader[]): Binding | string {
  const { shape, stored = shape } = ref;
  for (const name of ref.tensors) {
    for (const reader of readers) {
      const tensor = reader.tensors.get(name);
      if (!tensor) continue;
      if (!sameShape(tensor.shape, stored))
        return `${name} must be [${stored.join(', ')}], got [${tensor.shape.join(', ')}]`;
      if (!isFloat(tensor.storage)) return `${name} must be f32, f16 or bf16, got ${tensor.storage}`;
      return {
        storage: tensor.storage,
        shape,
        untuned: false,
        read: async (as) => ({ ...(await reader.readFloats(name, { as, ...partOf(ref) })), shape }),
      };
    }
  }
  const { initial } = ref;
  if (!initial) return `${ref.tensors[0]} is missing`;
  return { storage: 'f32', shape, untuned: true, read: async (as) => fromValues(initial(), shape, as) };
}

function partOf({ index, rows }: WeightRef): Pick<WeightRef, 'index' | 'rows'> {
  return { ...(index !== undefined && { index }), ...(rows && { rows }) };
}

function fromValues(values: Float32Array, shape: readonly number[], as: 'f32' | 'f16'): HostTensor {
  if (values.length !== elementCount(shape)) {
    throw new DslaError('E_INTERNAL', { where: 'initial', rule: `values must fill [${shape}]`, got: values.length });
  }
  return { dtype: as, shape, data: as === 'f32' ? values : toFloat16(values) };
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  const strip = (shape: readonly number[]) => shape.slice(shape.findIndex((size) => size !== 1)).join();
  return strip(a) === strip(b);
}

function isFloat(storage: string): storage is 'f32' | 'f16' | 'bf16' {
  return storage === 'f32' || storage === 'f16' || storage === 'bf16';
}

/** Llama-2 files carry the rotary frequencies, which follow from the configuration. */
const superfluous = /\.rotary_emb\.inv_freq$/;

function unexpected({ weights }: ModelDescription, checkpoint: TensorReader, conversion?: TensorReader): string[] {
  const refs = Object.values(weights);
  const known = new Set(refs.flatMap(({ tensors }) => tensors));
  const ofMixers = new Set(refs.filter(({ mixer }) => mixer !== undefined).flatMap(({ tensors }) => tensors));
  return [
    ...[...checkpoint.tensors.keys()].filter((name) => !known.has(name) && !superfluous.test(name)),
    ...[...(conversion?.tensors.keys() ?? [])].filter((name) => !ofMixers.has(name)),
  ];
}

function refuse({ architecture }: ModelDescription, problems: readonly string[]): never {
  const shown = problems.slice(0, 12).join('; ');
  const more = problems.length > 12 ? `; and ${problems.length - 12} more` : '';
  throw new DslaError('E_CONFIG', {
    where: `weights of ${architecture}`,
    rule: `${problems.length} tensor(s) do not fit the configuration: ${shown}${more}`,
    cure: 'Check that config.json belongs to these weights, and that every file was downloaded.',
    details: { problems },
  });
}
