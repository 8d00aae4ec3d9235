import { parseArgs } from 'node:util';
import type { LayerGraph, WeightShape } from '@dsla/spec';
import type { Traits } from '../src/builder.js';
import { attentionCuts } from '../src/kernels/flash-attention.js';
import { type MatrixShape, matrixShapes } from '../src/kernels/linear-matrix.js';
import { openKernelTimer } from './kernel-timer.js';
import { synthetic } from './synthetic.js';

// Milliseconds of every operator of a prefill of Llama2-7B's shape by the device's own clock: products, cuts of products,
// attention of every mixer, folds of a cache. The kernels of an operator run one by one on noise. One JSON object a line.

const { values: options } = parseArgs({
  options: {
    products: { type: 'string', default: '4096,8192' },
    /** Items of a product, and tokens of attention, in all their cuts. */
    cuts: { type: 'string', default: '' },
    mixers: { type: 'string', default: 'default,scalar,vector,foldable' },
    tokens: { type: 'string', default: '8192,32768' },
    folds: { type: 'string', default: 'scalar,foldable' },
    past: { type: 'string', default: '32768' },
    shape: { type: 'string', default: 'llama2-7b' },
    repeat: { type: 'string', default: '5' },
    /** Seconds of work before the first time is taken. */
    warm: { type: 'string', default: '3' },
    software: { type: 'boolean', default: false },
  },
});
const list = (text: string): string[] => text.split(',').filter(Boolean);
const timer = await openKernelTimer(options.software);
const model = synthetic(options.shape, 1);
const [hidden, inner] = options.shape === 'tiny' ? [128, 256] : [4096, 11008]; // widths of the model and of its feed-forward half

const all = [...operators()];
for (const operator of all.reverse()) await measure(operator, 0);
await timer.warm(Number(options.warm));
for (const operator of all.reverse()) await measure(operator, Number(options.repeat));
timer.close();
process.exit(); // the instance must not be collected before

interface Operator {
  readonly operator: string;
  readonly graph: LayerGraph;
  readonly shapeOf: WeightShape;
  readonly tokens: number;
  readonly past: number;
  readonly flops?: number;
  readonly cut?: string;
  readonly traits?: Traits;
}

function* operators(): Generator<Operator> {
  for (const tokens of list(options.cuts).map(Number))
    for (const [cut, shape] of Object.entries(matrixShapes)) yield product(hidden, hidden, tokens, cut, shape);
  for (const tokens of list(options.products).map(Number)) {
    yield product(hidden, hidden, tokens);
    yield product(hidden, inner, tokens);
    yield product(inner, hidden, tokens);
  }
  const shapeOf: WeightShape = (name) => model.weights[name]!.shape;
  const { versions } = model.segments.find(({ versions }) => Object.keys(versions).length > 1)!;
  const softmax = { operator: 'attention default', graph: versions.default, shapeOf, past: 0 };
  for (const tokens of list(options.cuts).map(Number))
    for (const [cut, attention] of Object.entries(attentionCuts))
      yield { ...softmax, tokens, cut, traits: { ...timer.traits, attention } };
  for (const tokens of list(options.tokens).map(Number))
    for (const mixer of list(options.mixers))
      yield { operator: `attention ${mixer}`, graph: versions[mixer] ?? versions.default, shapeOf, tokens, past: 0 };
  for (const mixer of list(options.folds))
    for (const past of list(options.past).map(Number))
      yield { operator: `fold ${mixer}`, graph: model.folds[mixer]![0]!, shapeOf, tokens: 0, past };
}

/** y = x W^T */
function product(width: number, out: number, tokens: number, cut?: string, shape?: MatrixShape): Operator {
  const graph: LayerGraph = {
    name: 'product',
    states: [],
    nodes: [
      { op: 'input', name: 'x', width },
      { op: 'linear', x: 0, weight: 'w' },
      { op: 'output', name: 'y', x: 1 },
    ],
  };
  const operator = { operator: `product ${width} to ${out}`, graph, shapeOf: () => [out, width], tokens, past: 0 };
  const traits = shape && { ...timer.traits, product: shape };
  return { ...operator, flops: 2 * tokens * width * out, ...(cut && { cut }), ...(traits && { traits }) };
}

/** Times the kernels of an operator, or with no `repeat` runs them once. */
async function measure(of: Operator, repeat: number): Promise<void> {
  const { operator, graph, shapeOf, tokens, past, flops, cut, traits } = of;
  const kernels = await timer.time({ graph, shapeOf, rows: [{ slot: 0, past, count: tokens }] }, repeat, traits);
  if (repeat === 0) return;
  const milliseconds = kernels.reduce((sum, kernel) => sum + kernel.milliseconds, 0);
  const rate = flops === undefined ? {} : { teraflops: flops / milliseconds / 1e9 };
  const line = { operator, cut, tokens, past, milliseconds, ...rate, kernels };
  console.log(JSON.stringify({ ...line, device: timer.description, node: process.version }));
}
