import { elementCount } from '@dsla/spec';
import proto from 'onnx-proto';
import { libraryPath } from '../src/binding/choose.js';
import { type Handle, openLibrary } from '../src/binding/ort-api.js';
import { onCpu } from '../src/dialect.js';
import type { Port } from '../src/lowering.js';
import { compileProgram } from '../src/program.js';
import { elementBytes, elementCode } from '../src/protobuf.js';
import { weights, whole } from './llama.js';

const { onnx } = proto;

/** The whole model as one ordinary ONNX session: weights inside, run in place by the calling thread. */
export interface Peer {
  /** Returns the logits. */
  step(id: number, past: number): Float32Array;
  close(): void;
}

/** @param capacity Tokens of the cache. */
export async function openPeer(threads: number, capacity: number): Promise<Peer> {
  const library = await openLibrary(libraryPath());
  const threading = library.make('CreateThreadingOptions');
  library.call('SetGlobalIntraOpNumThreads', threading, threads);
  const env = library.make('CreateEnvWithGlobalThreadPools', 3, 'peer', threading);
  const host = library.make('CreateCpuMemoryInfo', 1, 0);
  const shapeOf = (name: string): readonly number[] => weights.spec(name).shape;
  const model = compileProgram(whole, shapeOf, { standIn: undefined, dialect: onCpu }, () => false).whole!;
  const bytes = await withWeights(model.encode(), model.inputs);
  const options = library.make('CreateSessionOptions');
  library.call('SetSessionGraphOptimizationLevel', options, 99);
  library.call('DisablePerSessionThreads', options);
  const pack = library.make('CreatePrepackedWeightsContainer');
  const made = library.make(
    'CreateSessionFromArrayWithPrepackedWeightsContainer',
    env,
    bytes,
    bytes.byteLength,
    options,
    pack,
  );
  const binding = library.make('CreateIoBinding', made);

  const buffers = new Map<string, ArrayBuffer>();
  const values = new Map<string, Handle>();
  for (const port of [...model.inputs, ...model.outputs]) {
    if (port.source.kind === 'weight') continue;
    // A state is one tensor, bound as input and as output.
    const key = port.source.kind === 'state' ? `${port.source.state} ${port.source.part}` : port.name;
    if (!values.has(key)) {
      const dims = port.dims.map((size) =>
        typeof size === 'number'
          ? size
          : size === 'tokens' && port.source.kind === 'state'
            ? capacity
            : size === 'positions'
              ? capacity
              : 1,
      );
      const block = library.allocate(elementCount(dims) * elementBytes[port.type])!;
      const size = elementCount(dims) * elementBytes[port.type];
      buffers.set(key, block.content.buffer as ArrayBuffer);
      values.set(
        key,
        library.make(
          'CreateTensorWithDataAsOrtValue',
          host,
          block.address,
          size,
          BigInt64Array.from(dims, BigInt),
          dims.length,
          elementCode(port.type),
        ),
      );
      if (port.source.kind === 'table') {
        const { table } = port.source;
        new Float32Array(block.content.buffer).forEach((_, at, all) => {
          all[at] = table.entry(Math.floor(at / table.width), at % table.width);
        });
      }
    }
    library.call(model.inputs.includes(port) ? 'BindInput' : 'BindOutput', binding, port.name, values.get(key)!);
  }
  const logits = new Float32Array(buffers.get(model.outputs.find(({ source }) => source.kind === 'value')!.name)!);
  const ids = new Int32Array(buffers.get('ids')!);
  const controls = model.inputs.flatMap(({ name, source }) =>
    source.kind === 'control' ? [{ control: source.control, bytes: new Uint8Array(buffers.get(name)!) }] : [],
  );
  return {
    step(id, past) {
      ids[0] = id;
      for (const { control, bytes: target } of controls) {
        const { data } = control.make({ past, count: 1 });
        target.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      }
      library.call('RunWithBinding', made, null, binding);
      return logits.slice();
    },
    close() {
      library.call('ReleaseIoBinding', binding);
      for (const value of values.values()) library.call('ReleaseValue', value);
      library.call('ReleaseSession', made);
    },
  };
}

/** Turns the inputs that are weights into constants. */
async function withWeights(bytes: Uint8Array, inputs: readonly Port[]): Promise<Uint8Array> {
  const model = onnx.ModelProto.decode(bytes);
  const graph = model.graph!;
  const constants = inputs.filter(({ source }) => source.kind === 'weight');
  graph.input = graph.input!.filter(({ name }) => !constants.some((port) => port.name === name));
  for (const { name, source } of constants) {
    if (source.kind !== 'weight') continue;
    const { shape, data } = await weights.read(source.weight, 'f32');
    const rawData = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    graph.initializer!.push(onnx.TensorProto.create({ name, dims: [...shape], dataType: 1, rawData }));
  }
  return onnx.ModelProto.encode(model).finish();
}
