import koffi from 'koffi';
import { beforeAll, describe, expect, it } from 'vitest';
import type { Tensor } from './binding/binding.js';
import { CApiSession, OwnOperators } from './binding/c-api-parts.js';
import { libraryPath } from './binding/choose.js';
import { CApiMemory } from './binding/memory.js';
import { type Handle, type OrtLibrary, openLibrary } from './binding/ort-api.js';
import type { Operator } from './cuda/operator.js';
import { GraphBuilder } from './emit.js';

// On the CPU the launcher is a function of this file: what ONNX Runtime is told and hands over is the same on CUDA.

type Launcher = (operator: Operator) => (pointers: readonly bigint[], named: ReadonlyMap<string, number>) => void;
interface Operators {
  add(domain: Handle, operators: readonly Operator[], launcher: Launcher, room: SharedArrayBuffer): void;
  drop(room: unknown): void;
}

const onLinux = process.platform === 'linux';
const rest = { source: '', launches: [] };

/** y[i] = sum over j of x[i, j] + w[j], and as many zeros as blocks of two rows. */
const sums: Operator = {
  name: 'Sums',
  inputs: [
    { type: 'float', dims: ['rows', 3] },
    { type: 'float', dims: ['width'] },
  ],
  outputs: [
    { type: 'float', dims: ['rows'] },
    { type: 'float', dims: [{ times: [{ blocks: 'rows', by: 2 }, 1] }] },
  ],
  ...rest,
};

describe.skipIf(!onLinux)('operators of our own in a graph', () => {
  let library: OrtLibrary;
  let env: Handle;
  let info: Handle;
  let operators: Operators;
  const seen: (readonly [string, number])[][] = [];
  const launcher: Launcher = () => (pointers, named) => {
    seen.push([...named]);
    const [rows, width] = [named.get('rows')!, named.get('width')!];
    const [x, w, y] = [rows * width, width, rows].map(
      (length, at) => new Float32Array(koffi.view(pointers[at]!, 4 * length)),
    );
    for (let i = 0; i < rows; i++) {
      y![i] = 0;
      for (let j = 0; j < width; j++) y![i]! += x![i * width + j]! + w![j]!;
    }
    new Float32Array(koffi.view(pointers[3]!, 4 * Math.ceil(rows / 2))).fill(0);
  };

  beforeAll(async () => {
    library = await openLibrary(libraryPath());
    const { loadOperators } = await import(new URL('./operators.js', import.meta.url).href);
    const at = (name: Parameters<OrtLibrary['address']>[0], result: string, args: string[]): unknown =>
      koffi.decode(library.address(name), koffi.proto(null, result, args));
    operators = loadOperators(koffi, at, null);
    const threading = library.make('CreateThreadingOptions');
    env = library.make('CreateEnvWithGlobalThreadPools', 3, 'operators', threading);
    library.call('ReleaseThreadingOptions', threading);
    info = library.make('CreateCpuMemoryInfo', 1, 0);
  });

  /** -Sums(x, w) and its second output, for x [rows, 3] of ones. */
  function run(operator: Operator, rows: number, w: readonly number[]): number[][] {
    const graph = new GraphBuilder();
    const inputs = [graph.input('x', 'float', ['rows', 3]), graph.input('w', 'float', ['width'])];
    const [sum, zeros] = graph.own(operator, inputs) as [string, string];
    graph.output('y', graph.op('Neg', [sum]), ['rows']);
    graph.output('z', zeros, ['blocks']);
    const model = graph.finish('sums');
    const options = library.make('CreateSessionOptions');
    const own = new OwnOperators(library, graph.operators, options, { tell: ({ room }) => operators.drop(room) });
    const { domain, room } = own.request;
    operators.add(domain, own.request.operators, launcher, room);
    const pack = library.make('CreatePrepackedWeightsContainer');
    const create = 'CreateSessionFromArrayWithPrepackedWeightsContainer';
    const handle = library.make(create, env, model, model.byteLength, options, pack);
    const session = new CApiSession(library, handle, () => {
      library.call('ReleaseSession', handle);
      own.dispose();
    });
    const tensor = (values: readonly number[], dims: readonly number[]): Tensor => {
      const memory = new CApiMemory(library.allocate(4 * values.length)!, info, 4 * values.length, () => {});
      memory.write(Float32Array.from(values));
      return { memory, offset: 0, type: 'float', dims };
    };
    const [x, y] = [tensor(Array(3 * rows).fill(1), [rows, 3]), tensor(Array(rows).fill(7), [rows])];
    const z = tensor(Array(Math.ceil(rows / 2)).fill(7), [Math.ceil(rows / 2)]);
    const given = new Map([['x', x] as const, ['w', tensor(w, [w.length])] as const]);
    const bound = session.bind(given, new Map([['y', y] as const, ['z', z] as const]));
    try {
      library.call('RunWithBinding', session.handle, null, (bound as unknown as { handle: Handle }).handle);
      const numbers = ({ memory }: Tensor): number[] => [
        ...new Float32Array(koffi.view((memory as CApiMemory).address(0), memory.bytes)),
      ];
      return [numbers(y), numbers(z)];
    } finally {
      bound.dispose();
      session.dispose();
      library.call('ReleasePrepackedWeightsContainer', pack);
      library.call('ReleaseSessionOptions', options);
    }
  }

  it('take inputs, make outputs of the sizes they say, and know the sizes that have names', () => {
    expect(run(sums, 5, [1, 2, 3])).toEqual([Array(5).fill(-9), [0, 0, 0]]);
    expect(seen.at(-1)).toEqual([
      ['rows', 5],
      ['width', 3],
    ]);
    expect(run(sums, 2, [0, 0, 0.5])).toEqual([[-3.5, -3.5], [0]]);
  });

  it('refuse inputs of other sizes', () => {
    const [x] = sums.inputs;
    const strict = { ...sums, name: 'Strict', inputs: [x!, { type: 'float', dims: [4] } as const] };
    expect(() => run(strict, 2, [1, 2, 3])).toThrow('Strict: input 1 must be [4], got [3]');
    const equal = { ...sums, name: 'Equal', inputs: [x!, { type: 'float', dims: ['rows'] } as const] };
    expect(() => run(equal, 2, [1, 2, 3])).toThrow('Equal: input 1 must be [rows], got [3]');
  });

  it('say which size has no name', () => {
    const lost = { ...sums, name: 'Lost', outputs: [sums.outputs[0]!, { type: 'float', dims: ['tokens'] } as const] };
    expect(() => run(lost, 2, [1, 2, 3])).toThrow('no input has a dim called tokens');
  });
});
