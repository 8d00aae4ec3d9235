// Dual linear attention alone, at the shape of Llama2-7B's heads: the time of one operator is what each further one of a program adds.
// One JSON object a line on stdout. Bundled as conformance.ts is: node OUT/dual.mjs --tokens 8192,32768 --forms scalar,vector
import { parseArgs } from 'node:util';
import {
  type DualForm,
  dualState,
  f32,
  gateWidth,
  type HostTensor,
  type LayerGraph,
  type Node,
  toFloat16,
} from '@dsla/spec';
import { statistics } from '../../backend-webgpu/bench/synthetic.js';
import type { OnnxDevice } from '../src/device.js';
import { onnxBackend } from '../src/index.js';

const { values: options } = parseArgs({
  options: {
    tokens: { type: 'string', default: '8192' },
    forms: { type: 'string', default: 'scalar,vector,foldable' },
    heads: { type: 'string', default: '32' },
    /** How many a program has: the least, and as many more as are timed. */
    few: { type: 'string', default: '1' },
    more: { type: 'string', default: '3' },
    rounds: { type: 'string', default: '10' },
    device: { type: 'string', default: 'cuda' },
  },
});
const numbers = (text: string): number[] => text.split(',').map(Number);
const [heads, few, more, rounds] = [options.heads, options.few, options.more, options.rounds].map(Number) as [
  number,
  number,
  number,
  number,
];
const headDim = 128;
const vocabulary = 1024;

const plain: DualForm = {
  states: 2,
  kvHeads: heads,
  headDim,
  gate: 'scalar',
  temperature: 16,
  normaliser: false,
  ropeInState: false,
};
const rope = {
  rotaryDim: headDim,
  frequencies: Array.from({ length: headDim / 2 }, (_, pair) => 10000 ** (-pair / (headDim / 2))),
};
const forms: Readonly<Record<string, DualForm>> = {
  scalar: plain,
  vector: { ...plain, gate: 'vector' },
  foldable: {
    ...plain,
    normaliser: true,
    rope,
    featureMap: { kind: 'exp', query: 'features', key: 'features' },
    exact: { window: 64, sinks: 4, logWeight: 'logWeight' },
  },
};

/** Tables of q, k, v and the gates by token, then the operator `count` times, each with a state of its own. */
function program(form: DualForm, count: number): LayerGraph {
  const tables: Node[] = ['q', 'k', 'v', 'gates'].map((table) => ({ op: 'embed', table }));
  const nodes = Array.from({ length: count }, (_, at): Node => {
    const state = `state ${at}`;
    return {
      op: 'dualLinearAttention',
      q: 0,
      k: 1,
      v: 2,
      gates: 3,
      mix: 'mix',
      state,
      heads,
      scale: headDim ** -0.5,
      form,
    };
  });
  const states = nodes.map((_, at) => dualState(`state ${at}`, form, headDim));
  return { name: 'dual', nodes: [...tables, ...nodes, { op: 'output', name: 'o', x: 3 + count }], states };
}

function weightsOf(form: DualForm) {
  const width = heads * headDim;
  const shapes: Record<string, readonly number[]> = {
    q: [vocabulary, width],
    k: [vocabulary, width],
    v: [vocabulary, width],
    gates: [vocabulary, gateWidth(form)],
    mix: [1, form.states],
    features: [heads, headDim, headDim],
    logWeight: [heads],
  };
  return {
    spec: (name: string) => ({ storage: 'f32' as const, shape: shapes[name]! }),
    async read(name: string, as: 'f32' | 'f16'): Promise<HostTensor> {
      const shape = shapes[name]!;
      const length = shape.reduce((a, b) => a * b, 1);
      let state = name.length * 7919 + name.charCodeAt(0);
      const [middle, spread] = name === 'gates' ? [3, 3] : name === 'features' ? [0, 0.15] : [0, 1.7];
      const data = Float32Array.from({ length }, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes
        return middle + spread * (state / 2 ** 31 - 1);
      });
      return as === 'f32' ? f32(shape, data) : { dtype: 'f16', shape, data: toFloat16(data) };
    },
  };
}

await using device = (await onnxBackend.open({
  ...(options.device === 'cuda' && { computeType: 'f16' as const }),
  extra: { device: options.device },
})) as OnnxDevice;

for (const tokens of numbers(options.tokens))
  for (const name of options.forms.split(',')) {
    try {
      const less = await timed(name, tokens, few);
      const all = await timed(name, tokens, few + more);
      const milliseconds = (all.milliseconds.median - less.milliseconds.median) / more;
      print({ test: 'operator', form: name, tokens, operator: milliseconds, less, all, copies: more });
    } catch (error) {
      print({ test: 'operator', form: name, tokens, error: String(error).slice(0, 300) });
    }
  }

/** A program with so many operators over a whole prompt. */
async function timed(name: string, tokens: number, count: number) {
  const form = forms[name]!;
  const graph = program(form, count);
  using layer = await device.compile(graph, weightsOf(form));
  const states = Object.fromEntries(
    graph.states.map((spec) => [spec.name, device.createState(spec, 1, tokens)] as const),
  );
  const samples: number[] = [];
  let sample: readonly number[] = [];
  const ids = Int32Array.from({ length: tokens }, (_, at) => (at * 7919) % vocabulary);
  for (let round = 0; round < rounds + 4; round++) {
    using step = device.beginStep({ ids, rows: [{ slot: 0, past: 0, count: tokens }] });
    step.run(layer, states);
    await step.submit();
    if (round >= 4) samples.push(device.binding.computed / 1000);
    if (round === 4) {
      const { data } = await device.download(step.value('o'));
      sample = sampled(data as Float32Array);
    }
  }
  const { replayed } = device.binding;
  for (const state of Object.values(states)) state[Symbol.dispose]();
  return { milliseconds: statistics(samples), replayed, sample };
}

/** Some of the numbers, which any device must find. @throws Error where one of all of them is not finite */
function sampled(data: Float32Array): readonly number[] {
  if (!data.every(Number.isFinite)) throw new Error('outputs are not finite');
  return Array.from({ length: 16 }, (_, at) => data[Math.floor(((at + 0.5) / 16) * data.length)]!);
}

function print(line: Readonly<Record<string, unknown>>): void {
  const command = `dual.mjs ${process.argv.slice(2).join(' ')}`;
  console.log(JSON.stringify({ ...line, heads, command, device: device.description, node: process.version }));
}
