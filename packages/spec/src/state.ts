import { DslaError } from './errors.js';
import { bytesPerElement, type DType, elementCount, type HostTensor } from './tensor.js';

/** Shape and kind of what one slot remembers between steps. Bytes follow from it, so no device is needed to count them. */
export interface StateSpec {
  readonly name: string;
  /** Open: third parties may add kinds. */
  readonly kind: 'kv' | 'dual' | 'conv' | 'scan' | (string & {});
  readonly parts: readonly StatePart[];
}

export interface StatePart {
  readonly name: string;
  /** 'compute' is the device's compute type. */
  readonly dtype: DType | 'compute';
  /** 'tokens' stands for the capacity given to createState. */
  readonly shape: readonly (number | 'tokens')[];
}

/** Shape with the capacity filled in. */
export function partShape(part: StatePart, tokens: number): number[] {
  return part.shape.map((size) => (size === 'tokens' ? tokens : size));
}

/** Bytes of one slot at a capacity of `tokens`. */
export function stateBytes(spec: StateSpec, tokens: number, compute: DType = 'f32'): number {
  return spec.parts.reduce(
    (sum, part) =>
      sum +
      partShape(part, tokens).reduce((a, b) => a * b, 1) *
        bytesPerElement[part.dtype === 'compute' ? compute : part.dtype],
    0,
  );
}

/** Longest row, in tokens, of a store made for `tokens`: Infinity where the state does not grow with them. */
export function stateCapacity(spec: StateSpec, tokens: number): number {
  return spec.parts.some(({ shape }) => shape.includes('tokens')) ? tokens : Number.POSITIVE_INFINITY;
}

/** What every backend asks of `createState`. @throws DslaError E_INPUT */
export function checkStateSize({ name }: StateSpec, slots: number, tokens: number): void {
  const where = `createState ${name}`;
  if (!Number.isInteger(slots) || slots < 1)
    throw new DslaError('E_INPUT', { where, rule: 'slots must be an integer of at least 1', got: slots });
  if (!Number.isInteger(tokens) || tokens < 0)
    throw new DslaError('E_INPUT', { where, rule: 'tokens must be an integer of at least 0', got: tokens });
}

/** What every backend asks of `import`: the parts of `spec`, in order, float ones in f32. @throws DslaError E_INPUT */
export function checkStateContent(spec: StateSpec, tokens: number, parts: readonly HostTensor[]): void {
  const where = `state ${spec.name} import`;
  const fail = (rule: string, got: unknown): never => {
    throw new DslaError('E_INPUT', { where, rule, got });
  };
  if (parts.length !== spec.parts.length) fail(`must get ${spec.parts.length} parts`, parts.length);
  for (const [index, { dtype, shape, data }] of parts.entries()) {
    const part = spec.parts[index]!;
    const integer = part.dtype === 'i32' || part.dtype === 'u32';
    const want = `${integer ? part.dtype : 'f32'} [${partShape(part, tokens).join(', ')}]`;
    const got = `${dtype} [${shape.join(', ')}]`;
    if (got !== want) fail(`part ${part.name} must be ${want}`, got);
    if (data.length !== elementCount(shape)) fail(`part ${part.name} must fill its shape`, `${data.length} numbers`);
  }
}
