import { f32, type Node, toFloat16, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import type { Binding } from './binding/binding.js';
import { openCApi } from './binding/c-api.js';
import { libraryPath } from './binding/choose.js';
import { OnnxDevice } from './device.js';
import { onCuda } from './dialect.js';
import { isOwnLinear, ownNodes } from './own.js';
import type { Tape } from './tape.js';

const width = 8;
const [wide, dialect] = [24, onCuda('float16', true)];
const shapes: Readonly<Record<string, readonly number[]>> = {
  gain: [width],
  gate: [wide, width],
  up: [wide, width],
  down: [width, wide],
};
const weight = (name: string): number[] => {
  const [n, k = 1] = shapes[name]!;
  return Array.from({ length: n! * k }, (_, at) => Math.sin(1 + Object.keys(shapes).indexOf(name) + 7 * at));
};

const weights: WeightSource = {
  spec: (name) => ({ storage: 'f32', shape: shapes[name]! }),
  read: async (name) => ({ dtype: 'f16', shape: shapes[name]!, data: toFloat16(Float32Array.from(weight(name))) }),
};

/** The feed-forward half of a layer; `more`: nodes after it. */
function tapeOf(...more: readonly Node[]): Tape {
  const nodes: Node[] = [
    { op: 'input', name: 'x', width },
    { op: 'rmsNorm', x: 0, weight: 'gain', eps: 1e-3 },
    { op: 'linear', x: 1, weight: 'gate' },
    { op: 'activate', fn: 'silu', x: 2 },
    { op: 'linear', x: 1, weight: 'up' },
    { op: 'mul', a: 3, b: 4 },
    { op: 'linear', x: 5, weight: 'down' },
    { op: 'add', a: 0, b: 6 },
    { op: 'output', name: 'y', x: 7 },
    ...more,
  ];
  return { graph: { name: 'half', nodes, states: [] }, widths: [], shapeOf: (name) => shapes[name]! };
}

type Vector = readonly number[];

const silu = (x: number): number => x / (1 + Math.exp(-x));
const product = (name: string, x: Vector): Vector => {
  const [n, k] = shapes[name] as [number, number];
  const w = weight(name);
  return Array.from({ length: n }, (_, i) => x.reduce((sum, each, j) => sum + each * w[i * k + j]!, 0));
};
const norm = (x: Vector, name: string, eps: number): Vector => {
  const scale = 1 / Math.sqrt(x.reduce((sum, each) => sum + each * each, eps * x.length) / x.length);
  return x.map((each, j) => each * scale * weight(name)[j]!);
};

/** What a tape's outputs are for an x, by the definitions of its nodes. */
function outputs({ graph }: Tape, x: Vector): Vector[] {
  const values: Vector[] = [];
  const of = (node: Node): Vector => {
    const at = (index: number): Vector => values[index]!;
    if (isOwnLinear(node)) {
      const from = node.norm ? norm(at(node.x), node.norm.weight, node.norm.eps) : at(node.x);
      const gates = node.gate === undefined ? undefined : product(node.gate, from).map(silu);
      const y = product(node.weight, from).map((each, i) => each * (gates?.[i] ?? 1));
      return node.residual === undefined ? y : y.map((each, i) => each + at(node.residual!)[i]!);
    }
    switch (node.op) {
      case 'input':
        return x;
      case 'rmsNorm':
        return norm(at(node.x), node.weight, node.eps);
      case 'linear':
        return product(node.weight, at(node.x));
      case 'activate':
        return at(node.x).map(silu);
      case 'mul':
        return at(node.a).map((each, i) => each * at(node.b)[i]!);
      case 'add':
        return at(node.a).map((each, i) => each + at(node.b)[i]!);
      case 'output':
        return at(node.x);
      default:
        throw new Error(node.op);
    }
  };
  for (const node of graph.nodes) values.push(of(node));
  return graph.nodes.flatMap((node, index) => (node.op === 'output' ? [values[index]!] : []));
}

const x = Array.from({ length: width }, (_, at) => Math.cos(3 * at));
const kinds = ({ graph }: Tape): string[] =>
  graph.nodes.filter(({ op }) => op !== 'input').map((node) => (isOwnLinear(node) ? 'own' : node.op));

function expectSame(tape: Tape, wanted: readonly string[]): void {
  const own = ownNodes(tape, dialect);
  expect(kinds(own)).toEqual(wanted);
  const [got, want] = [outputs(own, x), outputs(tape, x)];
  for (const [at, values] of want.entries())
    for (const [i, value] of values.entries()) expect(got[at]![i]).toBeCloseTo(value, 10);
}

describe('linear maps of one token', () => {
  it('take norm, gate and sum along', () => {
    expectSame(tapeOf(), ['own', 'own', 'output']);
  });

  it('leave what others read', () => {
    expectSame(tapeOf({ op: 'output', name: 'norm', x: 1 }), ['rmsNorm', 'own', 'own', 'output', 'output']);
    const gate = ['own', 'activate', 'own', 'mul', 'own', 'output', 'output'];
    expectSame(tapeOf({ op: 'output', name: 'gate', x: 2 }), gate);
    const down = ['own', 'own', 'add', 'output', 'output'];
    expectSame(tapeOf({ op: 'output', name: 'down', x: 6 }), down);
  });

  it('stay as they are without operators of our own and in float32', () => {
    const tape = tapeOf();
    for (const other of [onCuda('float16'), onCuda('float', true)]) expect(ownNodes(tape, other)).toBe(tape);
  });
});

describe('operators of our own that do not compile', () => {
  /** A device on which none compiles, and the names of those that it was asked for. */
  async function refusing(): Promise<{ readonly device: OnnxDevice; readonly asked: string[] }> {
    const binding = await openCApi(libraryPath(), { threads: 1, packs: false });
    const asked: string[] = [];
    const without = { dialect: { ...onCuda('float16'), replays: false } };
    const ready: Binding['ready'] = async (operators) => {
      asked.push(...operators.map(({ name }) => name));
      if (operators.length > 0) Object.assign(binding, without);
      return operators.length === 0;
    };
    const asking = Object.assign(binding, { ready, dialect: { ...without.dialect, operators: true } });
    return { device: new OnnxDevice(asking), asked };
  }

  it("give way to ONNX Runtime's, drawing too", async () => {
    const { device, asked } = await refusing();
    await using _ = device;
    const nodes = [
      { op: 'input', name: 'x', width },
      { op: 'lastToken', x: 0 },
      { op: 'output', name: 'logits', x: 1 },
    ] as const;
    using layer = await device.compile({ name: 'head', nodes, states: [] }, weights);
    expect(asked).toEqual([`Draw ${width}`]);
    using buffer = device.upload(
      f32(
        [1, width],
        Float32Array.from({ length: width }, (_, at) => (at === 5 ? 2 : 1)),
      ),
    );
    using step = device.beginStep({ ids: new Int32Array(1), rows: [{ slot: 0, past: 0, count: 1 }] }, { x: buffer });
    step.run(layer, {});
    step.draw!([{ temperature: 0, uniform: 0 }]);
    await step.submit();
    expect([...(await device.download(step.value('ids'))).data]).toEqual([5]);
  });

  it("give way to ONNX Runtime's", async () => {
    const { device, asked } = await refusing();
    await using _ = device;
    const tape = tapeOf();
    using layer = await device.compile(tape.graph, weights);
    expect(asked).toEqual(['Linear 8 gated norm 0.001', 'Linear 24 residual']);
    using buffer = device.upload(f32([1, width], Float32Array.from(x)));
    const batch = { ids: new Int32Array(1), rows: [{ slot: 0, past: 0, count: 1 }] };
    using step = device.beginStep(batch, { x: buffer });
    step.run(layer, {});
    await step.submit();
    const { data } = await device.download(step.value('y'));
    const want = outputs(tape, x)[0]!;
    const off = Math.max(...want.map((value, i) => Math.abs(value - Number(data[i]))));
    expect(off).toBeLessThan(1e-2 * Math.max(...want.map(Math.abs)));
  });
});
