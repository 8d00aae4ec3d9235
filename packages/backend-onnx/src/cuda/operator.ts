import type { ElementType } from '../protobuf.js';

// Operators of our own: CUDA C, compiled when a layer is, as nodes of an ONNX graph. An operator is data, like all that goes to
// the computing thread (operators.js), which reads sizes from the inputs' dims when the node runs.

/** A number, a name that the dims of an input give a size, a product, or how many blocks of `by` cover a size. */
type Size = number | string | { readonly times: readonly Size[] } | { readonly blocks: Size; readonly by: number };

interface Operand<Dim> {
  readonly type: ElementType;
  readonly dims: readonly Dim[];
}

/** One launch of a kernel. */
export interface Launch {
  /** Name of an `extern "C" __global__` function of the source. */
  readonly kernel: string;
  /** Blocks along x, y, z. A launch of no blocks is left out. */
  readonly grid: readonly Size[];
  /** Threads of a block along x. */
  readonly threads: number;
  /** Dynamic shared memory of a block, in bytes: up to what the device has, beyond 48 KiB too. */
  readonly shared?: number;
  /** It may begin while the kernel before it still runs: it calls `before()` ahead of all that depends on others. */
  readonly early?: true;
}

/**
 * Every kernel takes the same arguments: a pointer to each input, to each output, and as an int each size that has a name, in the
 * order in which the inputs' dims first mention it. Launches follow one another on the device's stream. What they hand to one
 * another is an output that nobody reads. An output may be the memory of an input where the graph writes a state over its past.
 */
export interface Operator {
  /** Equal names mean equal operators. */
  readonly name: string;
  /** Numbers are checked when the node runs. */
  readonly inputs: readonly Operand<number | string>[];
  readonly outputs: readonly Operand<Size>[];
  /** CUDA C after the prelude (prelude.ts); constants of an operator belong into it. No header can be included. */
  readonly source: string;
  readonly launches: readonly Launch[];
}
