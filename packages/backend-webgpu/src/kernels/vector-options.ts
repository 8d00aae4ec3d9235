import type { NodeOf } from '@dsla/spec';
import type { Part, Shape } from './elementwise.js';
import type { Domain, Element } from './kernel.js';
import type { Format } from './quantise.js';

type Activation = NodeOf<'activate'>['fn'];

/**
 * How the work is cut: workgroups of `size` lanes that share the width of x, `items` at a time, and go through `rows` outputs,
 * `ahead` of them on their way before they are needed. Neighbouring workgroups read in `places` places of the matrices.
 */
export interface VectorShape {
  readonly size: number;
  readonly items: number;
  /** A multiple of `ahead`. */
  readonly rows: number;
  readonly ahead: number;
  /** Of a subgroup. */
  readonly lanes: number;
  readonly places: number;
  /** Of `size` lanes each, with rows of their own, in a workgroup that quantises one item together; else every lane its part. */
  readonly teams?: number | undefined;
}

/** A product of the kernel: its output, and whether it has a bias. */
export interface VectorPart {
  /** An x of its own, as wide as the others': all parts have one or none. Not where x is normed. */
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
  /** With `last`, the last tokens of x; the domain is rows. */
  readonly x: Part & { readonly last?: boolean };
  /** Of the matrices: the type of x, or quantised. */
  readonly format: Format;
  readonly parts: readonly VectorPart[];
  readonly shape: VectorShape;
  /** Takes the RMS norm of x instead of x. */
  readonly eps?: number | undefined;
}

/** Features that a load of 16 bytes takes. */
export const loadWidth: Readonly<Record<Format, number>> = { f32: 4, f16: 8, q8: 16, q4: 32 };

/** WGSL type of a load of 16 bytes. */
export const loadType = (type: Format): 'vec4u' | 'vec4f' => (type === 'f32' ? 'vec4f' : 'vec4u');

/** WGSL of the index of a load of x: `width` features each, the first of item `i`. */
export function firstOf(x: Part, i: string, width: number): string {
  const { stride = x.width, from = 0 } = x;
  return `${i} * ${stride / width}u${from === 0 ? '' : ` + ${from / width}u`}`;
}

/** WGSL of the numbers in a load, as vectors of four. */
export function foursOf(type: Element, load: string): string[] {
  if (type === 'f32') return [load];
  return ['xy', 'zw'].map(([a, b]) => `vec4f(unpack2x16float(${load}.${a}), unpack2x16float(${load}.${b}))`);
}
