import type { LayerGraph, Node, NodeOf, Row, Weight } from '@dsla/spec';
import { activations } from './nodes/activate.js';
import { causalConv } from './nodes/causal-conv.js';
import { dualLinearAttention, dualMemory } from './nodes/dual-linear-attention.js';
import { foldState } from './nodes/fold-state.js';
import { linear } from './nodes/linear.js';
import { rmsNorm } from './nodes/norm.js';
import { selectiveScan } from './nodes/selective-scan.js';
import { softmaxAttention } from './nodes/softmax-attention.js';
import { invalid, type Tensor } from './tensor.js';

/** A checked tape without calls, and what it needs. */
export interface Program {
  readonly graph: LayerGraph;
  /** Width of every value. */
  readonly widths: readonly number[];
  readonly weights: ReadonlyMap<Weight, Tensor>;
}

/** What a run reads and writes: the served rows, end to end. */
export interface Frame {
  /** Of the served rows, end to end; asked for when computed. */
  readonly ids: () => Int32Array;
  readonly rows: readonly Row[];
  read(name: string): Float64Array;
  write(name: string, data: Float64Array): void;
  /** The parts of a state of the served row `index`, to be changed in place. */
  parts(state: string, index: number): readonly Float64Array[];
}

/** Runs a tape, node by node. */
export function interpret(program: Program, frame: Frame): void {
  const values: Float64Array[] = [];
  for (const node of program.graph.nodes) values.push(evaluate(node, { ...program, frame, values }));
}

interface Context extends Program {
  readonly frame: Frame;
  readonly values: readonly Float64Array[];
}

const nothing = new Float64Array(0);

function evaluate(node: Node, context: Context): Float64Array {
  const { frame, values, widths } = context;
  const weight = (name: Weight): Tensor => context.weights.get(name)!;
  const optional = (name: Weight | undefined): Tensor | undefined => (name === undefined ? undefined : weight(name));
  switch (node.op) {
    case 'input':
      return frame.read(node.name);
    case 'embed':
      return embed(frame.ids(), weight(node.table));
    case 'linear':
      return linear(values[node.x]!, weight(node.weight), optional(node.bias));
    case 'rmsNorm':
      return rmsNorm(values[node.x]!, weight(node.weight).data, node.eps);
    case 'activate':
      return values[node.x]!.map(activations[node.fn]);
    case 'slice':
      return slice(values[node.x]!, widths[node.x]!, node.from, node.to);
    case 'add':
      return values[node.a]!.map((x, i) => x + values[node.b]![i]!);
    case 'mul':
      return values[node.a]!.map((x, i) => x * values[node.b]![i]!);
    case 'concat':
      return concat(values[node.a]!, widths[node.a]!, values[node.b]!, widths[node.b]!);
    case 'lastToken':
      return lastToken(values[node.x]!, widths[node.x]!, frame.rows);
    case 'softmaxAttention':
      return eachRow(context, [node.q, node.k, node.v], node.state, ([q, k, v], [keys, values], past) =>
        softmaxAttention(node, q!, k!, v!, { keys: keys!, values: values! }, past),
      );
    case 'dualLinearAttention': {
      const weights = {
        mix: weight(node.mix),
        query: optional(node.form.featureMap?.query),
        key: optional(node.form.featureMap?.key),
        logWeight: optional(node.form.exact?.logWeight),
        outputNorm: optional(node.outputNorm?.weight),
      };
      return eachRow(context, [node.q, node.k, node.v, node.gates], node.state, ([q, k, v, gates], parts, past) =>
        dualLinearAttention(node, weights, q!, k!, v!, gates!, dualMemory(parts), past),
      );
    }
    case 'causalConv':
      return eachRow(context, [node.x], node.state, ([x], [inputs]) =>
        causalConv(x!, weight(node.weight), optional(node.bias), inputs!),
      );
    case 'selectiveScan':
      return eachRow(context, [node.x, node.dt, node.b, node.c], node.state, ([x, dt, b, c], [state]) =>
        selectiveScan(x!, dt!, b!, c!, weight(node.logA), weight(node.d), state!),
      );
    case 'foldState':
      fold(node, context);
      return nothing;
    case 'output':
      frame.write(node.name, values[node.x]!);
      return nothing;
    default:
      throw invalid(context.graph.name, 'calls must have been inlined', (node satisfies NodeOf<'call'>).kind);
  }
}

/** A node with a state, row by row: each gets its own tokens, its own parts and its `past`. */
function eachRow(
  context: Context,
  inputs: readonly number[],
  state: string,
  body: (inputs: Float64Array[], parts: readonly Float64Array[], past: number) => Float64Array,
): Float64Array {
  const { frame, values, widths } = context;
  const width = widths[inputs[0]!]!; // of q or x, and of the result
  const out = new Float64Array(frame.rows.reduce((sum, { count }) => sum + count, 0) * width);
  let first = 0;
  frame.rows.forEach(({ past, count }, index) => {
    const own = inputs.map((x) => values[x]!.subarray(first * widths[x]!, (first + count) * widths[x]!));
    out.set(body(own, frame.parts(state, index), past), first * width);
    first += count;
  });
  return out;
}

function fold(node: NodeOf<'foldState'>, { frame, weights }: Context): void {
  const { key } = node.form.featureMap ?? {};
  const own = {
    gateWeight: weights.get(node.gateWeight)!,
    gateBias: node.gateBias === undefined ? undefined : weights.get(node.gateBias),
    key: key === undefined ? undefined : weights.get(key),
  };
  frame.rows.forEach(({ past }, index) => {
    const [keys, values] = frame.parts(node.from, index);
    foldState(node, own, { keys: keys!, values: values! }, dualMemory(frame.parts(node.to, index)), past);
  });
}

/** Rows of table [vocabulary, width]. */
function embed(ids: Int32Array, { data, shape }: Tensor): Float64Array {
  const width = shape[1]!;
  const out = new Float64Array(ids.length * width);
  ids.forEach((id, t) => {
    out.set(data.subarray(id * width, (id + 1) * width), t * width);
  });
  return out;
}

function slice(x: Float64Array, width: number, from: number, to: number): Float64Array {
  const out = new Float64Array((x.length / width) * (to - from));
  for (let row = 0; row * width < x.length; row++)
    out.set(x.subarray(row * width + from, row * width + to), row * (to - from));
  return out;
}

function concat(a: Float64Array, widthA: number, b: Float64Array, widthB: number): Float64Array {
  const out = new Float64Array(a.length + b.length);
  for (let row = 0; row * widthA < a.length; row++) {
    out.set(a.subarray(row * widthA, (row + 1) * widthA), row * (widthA + widthB));
    out.set(b.subarray(row * widthB, (row + 1) * widthB), row * (widthA + widthB) + widthA);
  }
  return out;
}

/** [rows, width]; NaN for a row without tokens in this step. */
function lastToken(x: Float64Array, width: number, rows: readonly Row[]): Float64Array {
  const out = new Float64Array(rows.length * width).fill(Number.NaN);
  let end = 0;
  rows.forEach(({ count }, index) => {
    end += count;
    if (count > 0) out.set(x.subarray((end - 1) * width, end * width), index * width);
  });
  return out;
}
