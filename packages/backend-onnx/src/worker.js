// The thread that computes. Plain JavaScript, so that it starts alike from the sources (in tests) and from the built package.
// Messages name what is to be done by `kind`; those with an `id` are answered.

import { parentPort, workerData } from 'node:worker_threads';

const { cells, cell, says, patience } = workerData.line;
const engine = workerData.binding === 'c-api' ? await openCApi(workerData) : await openNode(workerData);

let received = 0; // requests
parentPort.on('message', async ({ id, kind, ...request }) => {
  if (id !== undefined) received = (received + 1) | 0;
  try {
    const result = await engine[kind](request);
    if (id !== undefined) parentPort.postMessage({ id, result });
  } catch (error) {
    if (id === undefined) throw error; // nobody waits for it: the thread ends
    refuse(id, error);
  }
  if (engine.again && (kind === 'execute' || kind === 'again')) setImmediate(listen); // once the answer is on its way
});
parentPort.postMessage({ id: 0 });

function refuse(id, error) {
  parentPort.postMessage({ id, error: { message: String(error?.message ?? error), at: error?.at } });
}

/**
 * For a moment after a step the next one is waited for awake: a message takes too long to arrive where steps are short. One that
 * has been sent is not kept waiting.
 */
function listen() {
  Atomics.store(cells, cell.line, says.listening);
  let end = performance.now() + patience.next;
  do {
    if (Atomics.load(cells, cell.line) !== says.rung) continue;
    const id = Atomics.load(cells, cell.id);
    try {
      engine.again();
      Atomics.store(cells, cell.done, id);
      Atomics.notify(cells, cell.done);
    } catch (error) {
      refuse(id, error);
    }
    Atomics.store(cells, cell.line, says.listening);
    end = performance.now() + patience.next;
  } while (
    (performance.now() < end && Atomics.load(cells, cell.sent) === received) ||
    Atomics.compareExchange(cells, cell.line, says.listening, says.deaf) !== says.listening
  );
}

/** ONNX Runtime's C API by the addresses of its functions: handles are valid in every thread of the process. */
async function openCApi({ addresses, cuda }) {
  const { default: koffi } = await import('koffi');
  const P = 'void *';
  const at = (name, result, args) => koffi.decode(addresses[name], koffi.proto(null, result, args));
  const createSession = at('CreateSessionFromArrayWithPrepackedWeightsContainer', P, [P, P, 'size_t', P, P, P]);
  const runWithBinding = at('RunWithBinding', P, [P, P, P]);
  const getErrorMessage = at('GetErrorMessage', 'const char *', [P]);
  const releaseStatus = at('ReleaseStatus', 'void', [P]);
  const device = cuda ? openCuda(koffi, cuda) : openHost(koffi);

  const failure = (status) => {
    const message = getErrorMessage(status);
    releaseStatus(status);
    return new Error(message);
  };
  let last = []; // commands
  const issue = (commands) => {
    for (let at = 0; at < commands.length; at += 3) {
      const [first, second, bytes] = [commands[at], commands[at + 1], commands[at + 2]];
      if (bytes !== 0n) device.copy(first, second, bytes);
      else {
        const status = runWithBinding(first, device.runOptions, second);
        if (status) throw Object.assign(failure(status), { at: at / 3 });
      }
    }
  };
  const timed = (work) => {
    const start = performance.now();
    work();
    cells[cell.microseconds] = 1000 * (performance.now() - start);
  };
  return {
    create({ model, env, options, pack }) {
      const out = new BigUint64Array(1);
      const status = createSession(env, model, model.byteLength, options, pack, out);
      if (status) throw failure(status);
      return out[0];
    },
    execute({ commands }) {
      last = commands;
      timed(() => device.execute(() => issue(last)));
    },
    /** Gives back what was made of the last commands. */
    forget: () => device.forget(),
    /** The last commands once more. */
    again: () => timed(() => device.again(() => issue(last))),
  };
}

function openHost(koffi) {
  return {
    runOptions: null,
    copy: koffi.load('libc.so.6').func('memcpy', 'void *', ['void *', 'void *', 'size_t']),
    execute: (issue) => issue(),
    again: (issue) => issue(),
    forget() {},
  };
}

/**
 * Everything goes through one stream. What is executed for the third time is recorded as a CUDA graph and launched as one from
 * then on. It stays as it was where the recording fails, holds work of the host, which must not be done twice, or copies from host
 * memory, which ONNX Runtime takes back.
 */
function openCuda(koffi, { runtime, stream, runOptions, turn }) {
  const P = 'void *';
  const library = koffi.load(runtime);
  const textOf = library.func('cudaGetErrorString', 'const char *', ['int']);
  const cuda = (name, ...args) => {
    const call = library.func(name, 'int', args);
    return (...values) => {
      const status = call(...values);
      if (status !== 0) throw new Error(`${name}: ${textOf(status)}`);
    };
  };
  const setDevice = cuda('cudaSetDevice', 'int');
  const memcpy = cuda('cudaMemcpyAsync', P, P, 'size_t', 'int', P);
  const synchronize = cuda('cudaStreamSynchronize', P);
  const begin = cuda('cudaStreamBeginCapture', P, 'int');
  const end = cuda('cudaStreamEndCapture', P, P);
  const nodesOf = cuda('cudaGraphGetNodes', P, P, P);
  const typeOf = cuda('cudaGraphNodeGetType', P, P);
  const instantiate = cuda('cudaGraphInstantiate', P, P, 'uint64_t');
  const destroy = cuda('cudaGraphDestroy', P);
  const destroyInstance = cuda('cudaGraphExecDestroy', P);
  const launch = cuda('cudaGraphLaunch', P, P);
  const clearError = library.func('cudaGetLastError', 'int', []);
  const copyOf = cuda('cudaGraphMemcpyNodeGetParams', P, P);
  const [onDevice, relaxed] = [3, 2]; // cudaMemcpyDeviceToDevice, cudaStreamCaptureModeRelaxed
  const [copyNode, hostNode] = [1, 3]; // cudaGraphNodeType
  setDevice(0);

  let instance; // of the recorded graph
  let repeats = 0;
  /** A run waits for its end, and gives back what it took from the host's memory, unless it is recorded. */
  let recording = false;

  /** A graph's instance; undefined where none can be made. */
  const record = (issue) => {
    const out = new BigUint64Array(1);
    let failed = false;
    begin(stream, relaxed);
    recording = true;
    try {
      issue();
    } catch {
      failed = true;
    }
    recording = false;
    try {
      end(stream, out);
      if (failed || out[0] === 0n || holdsHostWork(out[0])) return undefined;
      const made = new BigUint64Array(1);
      instantiate(made, out[0], 0);
      return made[0];
    } catch {
      return undefined;
    } finally {
      if (out[0] !== 0n) destroy(out[0]);
      clearError();
    }
  };
  const holdsHostWork = (graph) => {
    const count = new BigUint64Array(1);
    nodesOf(graph, null, count);
    const nodes = new BigUint64Array(Number(count[0]));
    nodesOf(graph, nodes, count);
    const type = new Int32Array(1);
    const copy = Buffer.alloc(160); // cudaMemcpy3DParms
    return nodes.some((node) => {
      typeOf(node, type);
      if (type[0] !== copyNode) return type[0] === hostNode;
      copyOf(node, copy);
      return copy.readInt32LE(152) !== onDevice; // kind
    });
  };
  const forget = () => {
    if (instance !== undefined) destroyInstance(instance);
    instance = undefined;
    repeats = 0;
    cells[cell.replayed] = 0;
  };
  /** Alone among the threads of this process; what was begun is finished also when it fails. */
  const alone = (work) => {
    while (Atomics.compareExchange(turn, 0, 0, 1) !== 0) Atomics.wait(turn, 0, 1);
    try {
      work();
    } finally {
      try {
        synchronize(stream);
      } finally {
        Atomics.store(turn, 0, 0);
        Atomics.notify(turn, 0);
      }
    }
  };
  return {
    get runOptions() {
      return recording ? runOptions : null;
    },
    copy: (to, from, bytes) => memcpy(to, from, bytes, onDevice, stream),
    forget,
    execute(issue) {
      forget();
      alone(issue);
    },
    again(issue) {
      alone(() => {
        repeats += 1;
        if (repeats === 2) instance = record(issue);
        cells[cell.replayed] = Number(instance !== undefined);
        if (instance === undefined) issue();
        else launch(instance, stream);
      });
    },
  };
}

/** onnxruntime-node: its sessions and tensors belong to this thread, and so does the memory under them. */
async function openNode({ threads, profile }) {
  const { InferenceSession, Tensor } = await import('onnxruntime-node');
  const arrays = { float: Float32Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array, uint8: Uint8Array };
  const sessions = new Map();
  const bindings = new Map();
  const memories = new Map();

  const tensor = ({ memory, offset, type, dims }) => {
    const length = dims.reduce((product, size) => product * size, 1);
    return new Tensor(
      type === 'float' ? 'float32' : type,
      new arrays[type](memories.get(memory), offset, length),
      dims,
    );
  };
  const copy = (to, toByte, from, fromByte, bytes) => {
    new Uint8Array(memories.get(to), toByte, bytes).set(new Uint8Array(memories.get(from), fromByte, bytes));
  };
  const named = (parts) => Object.fromEntries(parts.map((part) => [part.name, tensor(part)]));
  const run = async ([first, toByte, from, fromByte, bytes]) => {
    if (toByte !== undefined) return copy(first, toByte, from, fromByte, bytes);
    const { session, inputs, outputs } = bindings.get(first);
    await sessions.get(session).run(inputs, outputs);
  };
  return {
    hold: ({ memory, buffer }) => {
      memories.set(memory, buffer);
    },
    write: ({ memory, data }) => new Uint8Array(memories.get(memory)).set(data),
    copy: ({ memory, toByte, from, fromByte, bytes }) => copy(memory, toByte, from, fromByte, bytes),
    read: ({ memory, bytes }) => memories.get(memory).slice(0, bytes),
    drop: ({ memory }) => {
      memories.delete(memory);
    },
    async create({ session, model }) {
      const options = {
        executionProviders: ['cpu'],
        intraOpNumThreads: threads,
        logSeverityLevel: 3,
        // Every session has a thread pool of its own here; they must not spin against one another.
        extra: { session: { intra_op: { allow_spinning: '0' } } },
      };
      if (profile !== undefined) Object.assign(options, { enableProfiling: true, profileFilePrefix: profile });
      sessions.set(session, await InferenceSession.create(model, options));
    },
    bind: ({ bound, session, inputs, outputs }) => {
      bindings.set(bound, { session, inputs: named(inputs), outputs: named(outputs) });
    },
    unbind: ({ bound }) => {
      bindings.delete(bound);
    },
    async release({ session }) {
      const released = sessions.get(session);
      sessions.delete(session);
      if (profile !== undefined) released.endProfiling();
      await released.release();
    },
    async execute({ commands }) {
      const start = performance.now();
      for (const [at, command] of commands.entries()) {
        await run(command).catch((error) => {
          throw Object.assign(error, { at });
        });
      }
      cells[cell.microseconds] = 1000 * (performance.now() - start);
    },
  };
}
