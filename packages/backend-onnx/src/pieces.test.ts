import { referenceBackend } from '@dsla/reference';
import { type Device, type DualForm, dualState, f32, kvState, type LayerGraph, type Node, scanState } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { onnxBackend } from './index.js';

// Rows longer than one run of a session serves are cut inside the backend, with the state carried on.

function wave(length: number, seed: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => Math.sin(i * 0.7 + seed) + Math.cos(i * i * 0.01 + seed));
}

const form: DualForm = {
  states: 2,
  kvHeads: 1,
  headDim: 4,
  gate: 'scalar',
  temperature: 16,
  normaliser: false,
  ropeInState: false,
};
const inputs = (...widths: number[]): Node[] => widths.map((width, x) => ({ op: 'input', name: `i${x}`, width }));
const softmax: Node = {
  op: 'softmaxAttention',
  q: 0,
  k: 1,
  v: 2,
  state: 's',
  heads: 4,
  kvHeads: 1,
  headDim: 8,
  scale: 0.3,
};
const dual: Node = {
  op: 'dualLinearAttention',
  q: 0,
  k: 1,
  v: 2,
  gates: 3,
  mix: 'mix',
  state: 's',
  heads: 1,
  scale: 0.5,
  form,
};
const scan: Node = { op: 'selectiveScan', x: 0, dt: 1, b: 2, c: 3, logA: 'logA', d: 'd', state: 's', heads: 1 };

function tape(node: Node, widths: number[], state: LayerGraph['states'][number]): LayerGraph {
  const nodes = [...inputs(...widths), node, { op: 'output', name: 'y', x: widths.length } as const];
  return { name: node.op, nodes, states: [state] };
}

const shapes: Record<string, number[]> = { mix: [1, 2], logA: [1, 2048, 16], d: [1, 2048] };
const weights = {
  spec: (name: string) => ({ storage: 'f32' as const, shape: shapes[name]! }),
  read: async (name: string) =>
    f32(
      shapes[name]!,
      wave(
        shapes[name]!.reduce((a, b) => a * b, 1),
        3,
      ),
    ),
};

describe('rows longer than one run', () => {
  let device: Device;
  let reference: Device;
  beforeAll(async () => {
    device = await onnxBackend.open({ threads: 2 });
    reference = await referenceBackend.open();
  });
  afterAll(async () => {
    await device[Symbol.asyncDispose]();
    await reference[Symbol.asyncDispose]();
  });

  async function feed(on: Device, graph: LayerGraph, widths: number[], capacity: number, count: number) {
    using layer = await on.compile(graph, weights);
    const states = Object.fromEntries(
      graph.states.map((spec) => [spec.name, on.createState(spec, 1, capacity)] as const),
    );
    const values = Object.fromEntries(
      widths.map((width, x) => {
        // dt of a scan must be positive
        const change = graph.name === 'selectiveScan' && x === 1 ? (value: number) => value ** 2 / 10 : Number;
        return [`i${x}`, on.upload(f32([count, width], wave(count * width, x).map(change)))];
      }),
    );
    using step = on.beginStep({ ids: new Int32Array(count), rows: [{ slot: 0, past: 0, count }] }, values);
    step.run(layer, states);
    await step.submit();
    for (const each of [...Object.values(values), ...Object.values(states)]) each[Symbol.dispose]();
    return (await on.download(step.value('y'))).data as Float32Array;
  }

  /** RMS of the error against the RMS of the reference, whose cache is `small`. */
  async function error(graph: LayerGraph, widths: number[], count: number, capacity = 1, small = 1): Promise<number> {
    const got = await feed(device, graph, widths, capacity, count);
    const want = await feed(reference, graph, widths, small, count);
    const square = (values: Float32Array): number => values.reduce((sum, x) => sum + x * x, 0);
    return Math.sqrt(square(want.map((x, i) => x - got[i]!)) / square(want));
  }

  it('softmaxAttention: 70 tokens into a cache so large that a run takes 32', async () => {
    const graph = tape(softmax, [32, 8, 8], kvState('s', softmax as Extract<Node, { op: 'softmaxAttention' }>));
    expect(await error(graph, [32, 8, 8], 70, 1 << 19, 80)).toBeLessThan(1e-6);
  });

  it('dualLinearAttention: 8,400 tokens, where a run takes 8,192', async () => {
    expect(await error(tape(dual, [4, 4, 4, 2], dualState('s', form)), [4, 4, 4, 2], 8400)).toBeLessThan(1e-6);
  });

  it('two nodes that cut the same row at different places', async () => {
    const rope = { frequencies: [1, 0.1], rotaryDim: 4 };
    const narrow = { ...softmax, headDim: 4, state: 'kv', rope } as Extract<Node, { op: 'softmaxAttention' }>;
    const turning = { ...form, rope, ropeInState: true };
    const nodes: Node[] = [
      ...inputs(16, 4, 4, 2),
      narrow,
      { op: 'slice', x: 4, from: 0, to: 4 },
      { ...dual, q: 5, form: turning } as Node,
      { op: 'output', name: 'y', x: 6 },
    ];
    const graph = { name: 'both', nodes, states: [kvState('kv', narrow), dualState('s', turning)] };
    expect(await error(graph, [16, 4, 4, 2], 70, 1 << 19, 80)).toBeLessThan(1e-6);
  });

  it('selectiveScan: 300 tokens, where a run of 32,768 decays a token takes 256', async () => {
    const widths = [2048, 2048, 16, 16];
    expect(await error(tape(scan, widths, scanState('s', 2048, 16)), widths, 300)).toBeLessThan(1e-6);
  });
});
