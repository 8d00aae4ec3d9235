import { bytesPerElement, type DType } from './tensor.js';

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
