import { DslaError, isDslaError, type LayerGraph, type NodeOf, operandsOf, type Row } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { Frame } from './frame.js';
import { plainOf, statefulOf } from './lower.js';
import { foldState } from './nodes/fold-state.js';
import { stack } from './values.js';

/** The states of a run: every served row reads what an earlier run of the step left. */
export interface RunStates {
  capacity(state: string): number;
  read(state: string, row: number): readonly Tensor[] | undefined;
  /** Nothing empties the slot. */
  write(state: string, row: number, parts: readonly Tensor[] | undefined): void;
}

/** Computes a tape for some rows, to be called in a tidy. Returns the outputs by name. */
export function runTape(
  tape: LayerGraph,
  rows: readonly Row[],
  frame: Frame,
  input: (name: string) => Tensor,
  states: RunStates,
): Record<string, Tensor> {
  const values: Tensor[] = [];
  const outputs: Record<string, Tensor> = {};
  tape.nodes.forEach((node, index) => {
    try {
      const xs = operandsOf(node).map((value) => values[value]!);
      if (node.op === 'input') values[index] = input(node.name);
      else if (node.op === 'output') outputs[node.name] = xs[0]!;
      else if (node.op === 'foldState') fold(node, rows, frame, states);
      else {
        const plain = plainOf(node);
        values[index] = plain ? plain(node as never, xs, frame) : byRow(node as StatefulNode, xs, rows, frame, states);
      }
    } catch (cause) {
      throw isDslaError(cause) ? cause : failed(`${tape.name} node ${index} (${node.op})`, cause as Error);
    }
  });
  return outputs;
}

type StatefulNode = NodeOf<'softmaxAttention' | 'dualLinearAttention' | 'causalConv' | 'selectiveScan'>;

/** A node with a state, row by row. */
function byRow(
  node: StatefulNode,
  xs: readonly Tensor[],
  rows: readonly Row[],
  frame: Frame,
  states: RunStates,
): Tensor {
  const step = statefulOf(node)!;
  let first = 0;
  const ys = rows.flatMap(({ past, count }, row) => {
    if (count === 0) return [];
    const own = rows.length === 1 ? xs : xs.map((x) => tf.slice(x, [first, 0], [count, x.shape[1]!]));
    first += count;
    const { y, parts } = step(node as never, own, frame, 1, {
      past,
      capacity: states.capacity(node.state),
      parts: states.read(node.state, row),
    });
    states.write(node.state, row, parts);
    return [y];
  });
  return stack(ys, xs[0]!.shape[1]!);
}

function fold(node: NodeOf<'foldState'>, rows: readonly Row[], frame: Frame, states: RunStates): void {
  rows.forEach(({ past }, row) => {
    states.write(node.to, row, foldState(node, states.read(node.from, row), past, frame));
  });
}

/** What the engine threw, as an error of ours. */
export function failed(where: string, cause: Error): DslaError {
  const memory = cause instanceof RangeError || /memory|alloc/i.test(cause.message);
  return new DslaError(memory ? 'E_MEMORY' : 'E_DEVICE', {
    where,
    rule: memory ? 'the engine must have the memory it asks for' : 'the engine must compute it',
    got: cause.message,
    ...(memory && { cure: 'Use fewer rows or shorter sequences at a time.' }),
    cause,
  });
}
