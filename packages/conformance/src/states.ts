import { fromFloat16, type HostTensor, type Named, partShape, type StateStore } from '@dsla/spec';
import type { Tape } from './tape.js';

/**
 * The entries of an exported slot that are specified after `length` tokens, by part: of caches and rings those of tokens seen;
 * of the gates not those of the sinks, which never enter the states.
 */
export function validEntries(
  store: StateStore,
  tapes: readonly Tape[],
  length: number,
  parts: readonly HostTensor[],
): Named<Float32Array> {
  const found: Record<string, Float32Array> = {};
  store.spec.parts.forEach((part, index) => {
    const shape = partShape(part, store.tokens);
    const axis = tokenAxis(store.spec.kind, part.name);
    const first = part.name === 'gates' ? sinksOf(store.spec.name, tapes) : 0;
    const values = floats(parts[index]!);
    found[part.name] = axis === undefined ? values : stretch(values, shape, axis, first, length);
  });
  return found;
}

/** A copy of exported parts with `poison` in every entry that is not specified after `length` tokens. */
export function poisoned(
  store: StateStore,
  length: number,
  parts: readonly HostTensor[],
  poison: number,
): HostTensor[] {
  return store.spec.parts.map((part, index) => {
    const { shape, ...tensor } = parts[index]!;
    const axis = tokenAxis(store.spec.kind, part.name);
    if (axis === undefined) return { ...tensor, shape };
    const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
    const data = floats({ ...tensor, shape }).map((x, at) =>
      Math.floor(at / inner) % shape[axis]! < length ? x : poison,
    );
    return { dtype: 'f32', shape, data };
  });
}

function tokenAxis(kind: string, part: string): number | undefined {
  if ((kind === 'kv' || kind === 'dual') && (part === 'keys' || part === 'values')) return 1;
  return kind === 'dual' && part === 'gates' ? 0 : undefined;
}

function sinksOf(state: string, tapes: readonly Tape[]): number {
  for (const node of tapes.flatMap(({ graph }) => graph.nodes)) {
    if (node.op === 'dualLinearAttention' && node.state === state) return node.form.exact?.sinks ?? 0;
    if (node.op === 'foldState' && node.to === state) return node.form.exact?.sinks ?? 0;
  }
  return 0;
}

/** Entries first (inclusive) to end (exclusive) along an axis. */
function stretch(
  values: Float32Array,
  shape: readonly number[],
  axis: number,
  first: number,
  end: number,
): Float32Array {
  const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  return values.filter((_, at) => {
    const entry = Math.floor(at / inner) % shape[axis]!;
    return entry >= first && entry < end;
  });
}

/** Numbers of a float tensor. */
export function floats({ data }: HostTensor): Float32Array {
  return data instanceof Uint16Array ? fromFloat16(data) : Float32Array.from(data);
}
