import type { Node, Rope, Value, Weight, WeightShape } from '@dsla/spec';
import { type Activation, elementwiseSize, type Part, type Shape } from './kernels/elementwise.js';
import type { AttentionCut } from './kernels/flash-attention.js';
import { type Domain, type Element, type Grid, type Kernel, spread } from './kernels/kernel.js';
import type { MatrixShape } from './kernels/linear-matrix.js';
import type { Format, Quantised } from './kernels/quantise.js';
import type { Precise } from './precision.js';
import type { BufferRef, Scratch } from './program.js';
import type { View } from './view.js';

/** A value of the tape: where it lies and how it is read. */
export interface Operand extends Shape {
  readonly ref: BufferRef;
  readonly domain: Domain;
  /** It is a part of this value, from a feature on; those that can read it there. */
  readonly part?: { readonly of: Operand; readonly from: number } | undefined;
  /** It is the last tokens of this value, where products of a few rows read it. */
  readonly last?: Operand | undefined;
  /** It is never written: its reader, a scan, takes the parts. */
  readonly joint?: Joint | undefined;
  /** It is the RMS norm of this value; products of a few items take the norm themselves, for them it is not computed. */
  readonly normed?: { readonly x: Operand; readonly weight: Weight; readonly eps: number } | undefined;
}

/** Values end to end, of which nothing but their reader makes one: f of them, if there is an f. */
interface Joint {
  readonly parts: readonly Operand[];
  readonly fn?: Activation | undefined;
}

/** What decides which kernels a device gets. */
export interface Traits {
  readonly type: Element;
  /** Lanes of every subgroup; 0 where there are no subgroups or their size varies. */
  readonly lanes: number;
  /** Most of a workgroup; 256 when absent. */
  readonly threads?: number | undefined;
  /** Subgroup matrices of 16x16x16, float16 to float32, and workgroup memory for tiles of them. */
  readonly matrices: boolean;
  /** The cut of products by subgroup matrices that was chosen for the device. */
  readonly product?: MatrixShape | undefined;
  /** The cut of attention in tiles, likewise. */
  readonly attention?: AttentionCut | undefined;
  /** Matrices of wide products are stored so, instead of in `type`. */
  readonly weights?: Quantised | undefined;
}

/** What the lowering of a node may use. */
export interface Builder {
  /** Element type of activations, caches and matrices. */
  readonly type: Element;
  readonly traits: Traits;
  readonly shapeOf: WeightShape;
  /** Nodes whose results are float32 whatever the compute type (precision.ts). */
  readonly precise: ReadonlyMap<Node, Precise>;
  operand(value: Value): Operand;
  temp(width: number, type?: Element, domain?: Scratch): BufferRef;
  emit(kernel: Kernel, buffers: readonly BufferRef[], grid: (view: View) => Grid, replay?: boolean): void;
}

/** A new value. */
export function result(builder: Builder, width: number, domain: Domain, type: Element = builder.type): Operand {
  return { ref: builder.temp(width, type, domain), width, type, domain };
}

/** The element type of a node's result. */
export function typeOf({ precise, type }: Pick<Builder, 'precise' | 'type'>, node: Node): Element {
  return precise.has(node) ? 'f32' : type;
}

/** Where a value is read: a part in the value that it is part of. */
export function sourceOf({ ref, part }: Operand): BufferRef {
  return part?.of.ref ?? ref;
}

export function partOf({ width, type, part }: Operand): Part {
  return part ? { width, type, stride: part.of.width, from: part.from } : { width, type };
}

export function matrix(builder: Builder, name: Weight, format: Format = builder.type): BufferRef {
  return { kind: 'weight', name, type: format };
}

export function vector(name: Weight): BufferRef {
  return { kind: 'weight', name, type: 'f32' };
}

export function ropeRef(rope: Rope | undefined): BufferRef[] {
  return rope ? [{ kind: 'rope', key: `${rope.rotaryDim} ${rope.frequencies.join()}`, rope }] : [];
}

export function countOf(view: View, domain: Domain): number {
  return domain === 'token' ? view.tokens : view.rows;
}

/** A thread an element, or `together` of them. */
export function perElement({ width, domain }: Pick<Operand, 'width' | 'domain'>, together = 1): (view: View) => Grid {
  return (view) => spread(Math.ceil((countOf(view, domain) * width) / together / elementwiseSize));
}

/** Nothing where all rows are short. */
export function longOnly(grid: (view: View) => Grid): (view: View) => Grid {
  return (view) => (view.tiles === 0 ? [0, 0, 0] : grid(view));
}

/** A workgroup an item. */
export function perItem(domain: Domain): (view: View) => Grid {
  return (view) => [countOf(view, domain), 1, 1];
}
