import type { Rope, Weight } from '@dsla/spec';
import type { Domain, Element, Grid, Kernel } from './kernels/kernel.js';
import type { Format } from './kernels/quantise.js';
import type { View } from './view.js';

// A lowered tape: dispatches in order, their buffers still by name.

/** Scratch of a program: [items, width]. Replays have as many items as the rows have past tokens. */
interface Temp {
  readonly width: number;
  readonly type: Element;
  readonly domain: Scratch;
}

/** What scratch has one entry for; `short`: a token, where rows are short; `once`: one whatever the batch. */
export type Scratch = Domain | 'short' | 'past' | 'chunk' | 'once';

/** A named value of the step, [tokens or rows of the batch, width]. */
export interface NamedValue {
  readonly name: string;
  readonly width: number;
  readonly type: Element;
  readonly domain: Domain;
  /** All of them. */
  readonly key: string;
}

export function namedValue(name: string, width: number, type: Element, domain: Domain): NamedValue {
  return { name, width, type, domain, key: `${name} ${width} ${domain} ${type}` };
}

export type BufferRef =
  | { readonly kind: 'weight'; readonly name: Weight; readonly type: Format }
  | { readonly kind: 'state'; readonly state: string; readonly part: number }
  /** [1] u32: the capacity of a state in tokens. */
  | { readonly kind: 'info'; readonly state: string }
  | { readonly kind: 'rope'; readonly key: string; readonly rope: Rope }
  | { readonly kind: 'temp'; readonly temp: Temp }
  /** [splits, width] u32, zeros whenever no dispatch runs: what its workgroups leave for each other. */
  | { readonly kind: 'parts'; readonly width: number }
  | { readonly kind: 'value'; readonly value: NamedValue };

export interface Op {
  readonly kernel: Kernel;
  readonly buffers: readonly BufferRef[];
  readonly grid: (view: View) => Grid;
  /** Runs over the past tokens of the rows instead of the new ones. */
  readonly replay: boolean;
}

/** Temps that are never alive together share a buffer: bytes an item of each domain that the buffer must hold. */
type Slot = Record<Scratch, number>;

export interface Program {
  readonly ops: readonly Op[];
  readonly slots: readonly Slot[];
  readonly slotOf: ReadonlyMap<Temp, number>;
  /** Named values that the tape reads, and those it writes. */
  readonly inputs: readonly NamedValue[];
  readonly outputs: readonly NamedValue[];
  /** The buffers of the ops other than weights, each once. */
  readonly refs: readonly BufferRef[];
  /** Whether any op replays. */
  readonly replays: boolean;
  /** Embeds token ids below this number. */
  readonly vocabulary: number;
}

/** Buffers that a run may find changed, each once. */
export function refsOf(ops: readonly Op[], slotOf: Program['slotOf']): BufferRef[] {
  const refs = new Map<unknown, BufferRef>();
  const nameOf = (ref: BufferRef): unknown => {
    switch (ref.kind) {
      case 'weight':
        return undefined;
      case 'state':
        return `state ${ref.part} ${ref.state}`;
      case 'info':
        return `info ${ref.state}`;
      case 'rope':
        return `rope ${ref.key}`;
      case 'temp':
        return slotOf.get(ref.temp);
      case 'parts':
        return 'parts';
      case 'value':
        return `value ${ref.value.key}`;
    }
  };
  for (const ref of ops.flatMap(({ buffers }) => buffers)) if (ref.kind !== 'weight') refs.set(nameOf(ref), ref);
  return [...refs.values()];
}

export const elementBytes: Readonly<Record<Element, number>> = { f32: 4, f16: 2 };

/** Gives every temp a slot, the lowest that is free from its first use to its last. */
export function place(ops: readonly Op[]): Pick<Program, 'slots' | 'slotOf'> {
  const lastUse = new Map<Temp, number>();
  ops.forEach((op, index) => {
    for (const ref of op.buffers) if (ref.kind === 'temp') lastUse.set(ref.temp, index);
  });
  const slots: Slot[] = [];
  const busyUntil: number[] = [];
  const slotOf = new Map<Temp, number>();
  ops.forEach((op, index) => {
    for (const ref of op.buffers) {
      if (ref.kind !== 'temp' || slotOf.has(ref.temp)) continue;
      let slot = busyUntil.findIndex((last) => last < index);
      if (slot < 0) slot = slots.push({ token: 0, row: 0, short: 0, past: 0, chunk: 0, once: 0 }) - 1;
      busyUntil[slot] = lastUse.get(ref.temp)!;
      slotOf.set(ref.temp, slot);
      const { domain, width, type } = ref.temp;
      slots[slot]![domain] = Math.max(slots[slot]![domain], width * elementBytes[type]);
    }
  });
  return { slots, slotOf };
}

/**
 * Lets the producer of an output write the named value itself, where nothing reads the value's old content in between:
 * drops the copies at the end of a tape.
 */
export function elideCopies(ops: readonly Op[]): Op[] {
  const result = [...ops];
  for (let index = result.length - 1; index >= 0; index--) {
    const copy = result[index]!;
    const [source, target] = copy.buffers;
    if (copy.kernel.name !== 'copy' || source?.kind !== 'temp' || target?.kind !== 'value') continue;
    if (source.temp.type !== target.value.type) continue;
    const first = result.findIndex((op) => op.buffers.some((ref) => ref.kind === 'temp' && ref.temp === source.temp));
    const between = result.slice(first, index);
    const blocked = between.some((op) =>
      op.buffers.some((ref) => ref.kind === 'value' && ref.value.name === target.value.name),
    );
    if (blocked) continue;
    result.splice(index, 1);
    const rename = (ref: BufferRef) => (ref.kind === 'temp' && ref.temp === source.temp ? target : ref);
    result.forEach((op, at) => {
      if (op.buffers.some((ref) => rename(ref) !== ref)) result[at] = { ...op, buffers: op.buffers.map(rename) };
    });
  }
  return result;
}
