import type { NodeOf } from '@dsla/spec';
import type { Part, Shape } from './elementwise.js';
import { type Domain, itemAt } from './kernel.js';
import type { Format } from './quantise.js';

type Activation = NodeOf<'activate'>['fn'];

/**
 * How the work is cut: `items` at a time; `rows` outputs a team of `team` subgroups of `lanes`, which share the width of x;
 * workgroups of `size`, at least as many as a workgroup has items and outputs. Neighbouring workgroups read in `places` places of
 * the matrices: what runs at the same time then meets several pages of memory, which takes less time than one after the other.
 */
export interface VectorShape {
  readonly size: number;
  readonly items: number;
  readonly rows: number;
  readonly team: number;
  readonly lanes: number;
  readonly places: number;
  /** All rounds of loads begin at once, instead of one after the other. */
  readonly straight?: boolean | undefined;
}

/** A product of the kernel: its output, and whether it has a bias. */
export interface VectorPart {
  /** An x of its own, as wide as the others': all parts have one or none. Not where matrices are quantised or x is normed. */
  readonly x?: Part | undefined;
  readonly y: Shape;
  readonly bias: boolean;
  /** y = f(x W^T) * (x U^T): the gate of a feed-forward block. */
  readonly gate?: Activation | undefined;
  /** y = z + x W^T with another value z, or y += x W^T. */
  readonly add?: Shape | 'own' | undefined;
}

export interface VectorOptions {
  readonly domain: Domain;
  readonly x: Part;
  /** Of the matrices: the type of x, or quantised. */
  readonly format: Format;
  readonly parts: readonly VectorPart[];
  readonly shape: VectorShape;
  /** Takes the RMS norm of x instead of x. */
  readonly eps?: number | undefined;
}

/** WGSL of an item of the workgroup: of its last ones, several may be the same. */
export function itemOf({ domain, shape: { items: count } }: VectorOptions, b: number): string {
  return `${itemAt[domain]}(${count === 1 ? 'group.y' : `min(group.y * ${count}u + ${b}u, last)`}).x`;
}

/** WGSL of the index of a load of x: `width` features each, the first of item `i`. */
export function firstOf(x: Part, i: string, width: number): string {
  const { stride = x.width, from = 0 } = x;
  return `${i} * ${stride / width}u${from === 0 ? '' : ` + ${from / width}u`}`;
}
