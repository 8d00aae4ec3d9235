import type { Draw, Row, Weight } from '@dsla/spec';
import type { Operator } from './cuda/operator.js';
import type { Dialect } from './dialect.js';
import type { Dims, GraphBuilder, Ref } from './emit.js';
import type { ElementType } from './protobuf.js';

/** A small input that the host makes for a row of a step: positions, masks, indices. */
export interface Control {
  /** Controls of equal keys are the same: they are made once a row and shared by all layers. */
  readonly key: string;
  readonly type: ElementType;
  readonly dims: Dims;
  /** A size, which operators read on the host also where they compute elsewhere. */
  readonly onHost?: true;
  make(row: Pick<Row, 'past' | 'count'>): ControlData;
}

export interface ControlData {
  readonly dims: readonly number[];
  readonly data: Float32Array | Int32Array | BigInt64Array | Uint8Array;
}

/** A table by token position, [positions, width], shared by all rows; it grows with the longest row. */
export interface Table {
  readonly key: string;
  readonly type: ElementType;
  readonly width: number;
  entry(position: number, index: number): number;
}

/** A weight as a kernel wants it, made from the one of the checkpoint when it is loaded. */
export type Derivation = FloatDerivation | PartDerivation;

interface Derived {
  /** Equal names mean equal functions. */
  readonly name: string;
  shape(from: readonly number[]): readonly number[];
}

interface FloatDerivation extends Derived {
  apply(data: Float32Array, from: readonly number[]): Float32Array;
  readonly view?: undefined;
}

/** A part, of another type, of what is made of the weight as the device would hold it. */
export interface PartDerivation extends Derived {
  readonly view: {
    readonly type: ElementType;
    make(data: Float32Array | Uint16Array): Uint8Array;
    /** The same on a device that has operators of our own, from numbers [blocks, 32]. */
    readonly operator: Operator;
    /** Of the whole. */
    bytes(from: readonly number[]): number;
    /** In bytes. */
    offset(from: readonly number[]): number;
  };
}

/** Where a graph input comes from or a graph output goes to. */
export type Source =
  /** A value of the tape, [1, tokens or rows, width]. */
  | { readonly kind: 'value'; readonly value: number }
  /** int32 [1, tokens] */
  | { readonly kind: 'ids' }
  /** int64 [rows]: index of every row's last token. */
  | { readonly kind: 'last' }
  /** int32: the tokens that a cache holds at most; read on the host. */
  | { readonly kind: 'capacity'; readonly state: string }
  | { readonly kind: 'weight'; readonly weight: Weight; readonly derivation?: Derivation }
  | { readonly kind: 'control'; readonly control: Control }
  /** What the draws of a step ask for. */
  | {
      readonly kind: 'draw';
      readonly name: string;
      readonly onHost: boolean;
      make(draws: readonly Draw[]): ControlData;
    }
  | { readonly kind: 'table'; readonly table: Table }
  | { readonly kind: 'state'; readonly state: string; readonly part: number };

export interface Port {
  readonly name: string;
  readonly source: Source;
  readonly type: ElementType;
  /** 'tokens' is the capacity of a state; other words are known from the source at the run. */
  readonly dims: Dims;
}

/** What the lowering of a node may use. */
export interface Lowering {
  readonly graph: GraphBuilder;
  readonly dialect: Dialect;
  /**
   * The model serves exactly one token of each of its rows. Values lead with the rows then, [rows, 1, width], and so do controls,
   * made for each row and joined along their first axis; a control without axes is the largest of the rows.
   */
  readonly decode: boolean;
  /** Leading size of a state's part that has `count` of something for every row. */
  rows(count: number): number | string;
  /** A value of the compute type as float, */
  float(x: Ref): Ref;
  /** and one of float as compute type. */
  compute(x: Ref): Ref;
  shapeOf(weight: Weight): readonly number[];
  /** Tokens that a cache holds. */
  entriesOf(state: string): number | string;
  /** Last size of a state's part. */
  widthOf(state: string, part: number): number;
  /** Of the compute type; with a derivation float. */
  weight(weight: Weight, derivation?: Derivation): Ref;
  /** The same numbers in float. */
  floatWeight(weight: Weight): Ref;
  /** The product of a linear node: x [..., in] with a matrix [out, in]. */
  product(x: Ref, weight: Weight): Ref;
  /** A matrix as an operator of our own takes it: itself, or its codes and scales. */
  matrix(weight: Weight): readonly Ref[];
  control(control: Control): Ref;
  capacity(state: string): Ref;
  table(table: Table): Ref;
  /** A part of the rows' states, as it is held; `dims` are its shape, possibly with leading ones. */
  past(state: string, part: number, dims: Dims): Ref;
  /**
   * Its next content, written over the old one: every reader of the old one must come before in the graph, so that what
   * computes `value` depends on it.
   */
  present(state: string, part: number, value: Ref, dims: Dims): void;
}
