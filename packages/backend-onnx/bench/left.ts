// What the end of a thing leaves in the host's memory for good on CUDA: of a handle of cuDNN, of a session that is made and ended
// through ONNX Runtime's C API, and of a device of this backend. One JSON object a line on stdout, live bytes of the C library's heap
// and resident memory after every ten; bundled as conformance.ts is.
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type AttentionLayer, Scope } from '@dsla/spec';
import koffi from 'koffi';
import { bodyAndHead, randomWeights, synthetic } from '../../backend-webgpu/bench/synthetic.js';
import { libraryPath } from '../src/binding/choose.js';
import { type Handle, openLibrary } from '../src/binding/ort-api.js';
import { GraphBuilder } from '../src/emit.js';
import { onnxBackend } from '../src/index.js';

const { values: options } = parseArgs({
  options: {
    cycles: { type: 'string', default: '100' },
    /** Folder of ONNX Runtime with its CUDA provider; default: the one of onnxruntime-node. */
    folder: { type: 'string', default: process.env.DSLA_ONNX_CUDA ?? join(libraryPath(), '..') },
  },
});

const model = synthetic('tiny');
const source = randomWeights(model);
const graphs = bodyAndHead(model);

/** A device computes a prompt and is disposed. */
async function device(): Promise<void> {
  await using scope = new Scope();
  const own = scope.use(await onnxBackend.open({ extra: { device: 'cuda' } }));
  const layers: AttentionLayer[] = [];
  for (const graph of graphs) layers.push(scope.use(await own.compile(graph, source)));
  const specs = layers.flatMap(({ graph }) => graph.states);
  const states = Object.fromEntries(specs.map((spec) => [spec.name, own.createState(spec, 1, 64)]));
  using step = own.beginStep({ ids: new Int32Array(32), rows: [{ slot: 0, past: 0, count: 32 }] });
  for (const layer of layers) step.run(layer, states);
  await step.submit();
}

/** Makes and ends a session of one product. */
async function sessions(): Promise<() => void> {
  const library = await openLibrary(join(options.folder, 'libonnxruntime.so.1'));
  const environment = library.make('CreateEnvWithGlobalThreadPools', 3, 'left', library.make('CreateThreadingOptions'));
  const graph = new GraphBuilder();
  graph.output('y', graph.matmul(graph.input('x', 'float', [8, 64]), graph.input('w', 'float', [64, 64])), [8, 64]);
  const product = graph.finish('product');
  const settings = (): Handle => {
    const made = library.make('CreateSessionOptions');
    library.call('DisablePerSessionThreads', made);
    const provider = library.make('CreateCUDAProviderOptions');
    library.call('SessionOptionsAppendExecutionProvider_CUDA_V2', made, provider);
    library.call('ReleaseCUDAProviderOptions', provider);
    return made;
  };
  return () => {
    const [pack, own] = [library.make('CreatePrepackedWeightsContainer'), settings()];
    const create = 'CreateSessionFromArrayWithPrepackedWeightsContainer';
    library.call('ReleaseSession', library.make(create, environment, product, product.byteLength, own, pack));
    library.call('ReleaseSessionOptions', own);
    library.call('ReleasePrepackedWeightsContainer', pack);
  };
}

function handles(): () => void {
  const cudnn = koffi.load('libcudnn.so.9');
  const [create, destroy] = ['Create', 'Destroy'].map((what) => cudnn.func(`cudnn${what}`, 'int', ['void *']));
  return () => {
    const handle = new BigUint64Array(1);
    create!(handle);
    destroy!(handle[0]);
  };
}

const fields = [
  'arena',
  'ordblks',
  'smblks',
  'hblks',
  'hblkhd',
  'usmblks',
  'fsmblks',
  'uordblks',
  'fordblks',
  'keepcost',
];
const heap = koffi.struct(Object.fromEntries(fields.map((name) => [name, 'size_t'])));
const information = koffi.load('libc.so.6').func('mallinfo2', heap, []) as () => { readonly uordblks: number };

const things: Readonly<Record<string, () => Promise<void> | void>> = {
  device,
  'session of ONNX Runtime': await sessions(),
  'handle of cuDNN': handles(),
};
for (const [thing, cycle] of Object.entries(things))
  for (let at = 1; at <= Number(options.cycles); at++) {
    await cycle();
    if (at % 10 !== 0) continue;
    globalThis.gc?.(); // with --expose-gc
    const [live, rss] = [information().uordblks, process.memoryUsage.rss()];
    console.log(JSON.stringify({ test: 'left', thing, at, live, rss }));
  }
