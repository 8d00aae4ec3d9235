import { type Device, type DualForm, dualState, f32, kvState, type LayerGraph, type Node, scanState } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { onnxBackend } from './index.js';

// Rows longer than one run of a session serves are cut inside the backend: the result must be what the caller gets who cuts
// them elsewhere, or whose cache is so small that nothing needs cutting.

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
  beforeAll(async () => {
    device = await onnxBackend.open({ threads: 2 });
  });
  afterAll(async () => {
    await device[Symbol.asyncDispose]();
  });

  /** Feeds a row in steps of `counts` tokens; all outputs end to end. */
  async function feed(graph: LayerGraph, widths: number[], capacity: number, counts: number[]): Promise<Float32Array> {
    using layer = await device.compile(graph, weights);
    using s = device.createState(graph.states[0]!, 1, capacity);
    const outputs: Float32Array[] = [];
    let past = 0;
    for (const count of counts) {
      const values = Object.fromEntries(
        widths.map((width, x) => {
          // dt of a scan must be positive
          const data = wave((past + count) * width, x)
            .subarray(past * width)
            .map((value) => (graph.name === 'selectiveScan' && x === 1 ? value ** 2 / 10 : value));
          return [`i${x}`, device.upload(f32([count, width], data))];
        }),
      );
      const rows = [{ slot: 0, past, count }];
      using step = device.beginStep({ ids: new Int32Array(count), rows }, values);
      step.run(layer, { s });
      await step.submit();
      outputs.push((await device.download(step.value('y'))).data as Float32Array);
      for (const value of Object.values(values)) value[Symbol.dispose]();
      past += count;
    }
    return Float32Array.from(outputs.flatMap((output) => [...output]));
  }

  function apart(a: Float32Array, b: Float32Array): number {
    expect(a.length).toBe(b.length);
    const size = Math.sqrt(b.reduce((sum, x) => sum + x * x, 0));
    return Math.sqrt(a.reduce((sum, x, i) => sum + (x - b[i]!) ** 2, 0)) / size;
  }

  it('softmaxAttention: 70 tokens into a cache so large that a run takes 32', async () => {
    const widths = [32, 8, 8];
    const graph = tape(softmax, widths, kvState('s', softmax as Extract<Node, { op: 'softmaxAttention' }>));
    expect(apart(await feed(graph, widths, 1 << 19, [70]), await feed(graph, widths, 80, [70]))).toBeLessThan(1e-6);
  });

  it('dualLinearAttention: 2,100 tokens, where a run takes 2,048', async () => {
    const widths = [4, 4, 4, 2];
    const graph = tape(dual, widths, dualState('s', form));
    const cut = await feed(graph, widths, 1, [1050, 1050]);
    expect(apart(await feed(graph, widths, 1, [2100]), cut)).toBeLessThan(1e-6);
  });

  it('selectiveScan: 300 tokens, where a run of 32,768 decays a token takes 256', async () => {
    const widths = [2048, 2048, 16, 16];
    const graph = tape(scan, widths, scanState('s', 2048, 16));
    expect(apart(await feed(graph, widths, 1, [300]), await feed(graph, widths, 1, [150, 150]))).toBeLessThan(1e-6);
  });
});
