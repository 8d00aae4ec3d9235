import type { NodeOf, Op, Weight } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import type { RopeTables } from './rope.js';

/** What every node may ask for. */
export interface Frame {
  /** Token ids of the rows, end to end. */
  readonly ids: Int32Array;
  /** Tokens of every row. */
  readonly counts: readonly number[];
  readonly rope: RopeTables;
  /** As the checkpoint has it. */
  weight(name: Weight): Tensor;
  /** A weight of a linear node as [in, out]: the layout that the wasm engine multiplies ten times faster. */
  transposed(name: Weight): Tensor;
}

/** A row's state before a node. */
export interface Carry {
  /** Tokens in the state. */
  readonly past: number;
  /** Most tokens that the state may be asked to keep. */
  readonly capacity: number;
  /** The parts as the state's spec lays them out; a kv part may be shorter than its capacity. Absent: never written. */
  readonly parts: readonly Tensor[] | undefined;
}

interface Stepped {
  readonly y: Tensor;
  /** The state after the node; empty where there was no carry. */
  readonly parts: readonly Tensor[];
}

/** A node without a state: values [N, width] of all rows at once. */
export type Plain<K extends Op> = (node: NodeOf<K>, xs: readonly Tensor[], frame: Frame) => Tensor;

/** A node with a state. Without `carry`: `rows` sequences of equal length that start empty, for training. With it: one row. */
export type Stateful<K extends Op> = (
  node: NodeOf<K>,
  xs: readonly Tensor[],
  frame: Frame,
  rows: number,
  carry?: Carry,
) => Stepped;
