// The thread that computes. Plain JavaScript, so that it starts alike from the sources (in tests) and from the built package.
// Messages name what is to be done by `kind`; those with an `id` are answered.

import { parentPort, workerData } from 'node:worker_threads';
import { launcherOn, loadOperators } from './operators.js';

const { cells, cell, says, patience } = workerData.line;
const engine = workerData.binding === 'c-api' ? await openCApi(workerData) : await openNode(workerData);

let received = 0; // requests
parentPort.on('message', async ({ id, kind, ...request }) => {
  if (id !== undefined) received = (received + 1) | 0;
  try {
    const result = await engine[kind]?.(request);
    if (id !== undefined) parentPort.postMessage({ id, result });
  } catch (error) {
    if (id === undefined) throw error; // nobody waits for it: the thread ends
    refuse(id, error);
  }
  if (engine.begin && (kind === 'execute' || kind === 'listen')) setImmediate(listen); // once the answer is on its way
});
parentPort.postMessage({ id: 0 });

function refuse(id, error) {
  parentPort.postMessage({ id, error: { message: String(error?.message ?? error), at: error?.at } });
}

let taken = 0; // of what was rung for
const running = [];

/**
 * For a moment after a step the next one is waited for awake: a message takes too long to arrive where steps are short. One that
 * has been sent is not kept waiting. Steps are begun as they are rung for and answered in that order.
 */
function listen() {
  Atomics.store(cells, cell.line, says.listening);
  let end = performance.now() + patience.next;
  for (;;) {
    const more = Atomics.load(cells, cell.asked) !== taken;
    if (more && (running.length === 0 || !engine.wanted())) begin();
    else if (running.length > 0) {
      if (finish()) end = performance.now() + patience.next;
    } else if (performance.now() >= end || Atomics.load(cells, cell.sent) !== received) {
      Atomics.store(cells, cell.line, says.deaf);
      if (Atomics.load(cells, cell.asked) === taken) return;
      Atomics.store(cells, cell.line, says.listening);
    }
  }
}

function begin() {
  const slot = cell.slots + 3 * (taken & 3);
  taken = (taken + 1) | 0;
  const request = { slot, start: performance.now() };
  running.push(request);
  try {
    request.isDone = engine.begin(cells[slot + 1]);
  } catch (error) {
    request.error = error;
  }
}

/** Answers the oldest of the running ones if it is done. */
function finish() {
  const { slot, start, isDone, error } = running[0];
  let failed = error;
  try {
    if (!failed && !isDone()) return false;
  } catch (cause) {
    failed = cause;
  }
  running.shift();
  if (running.length === 0) engine.rest();
  cells[cell.microseconds] = 1000 * (performance.now() - start);
  if (failed) refuse(cells[slot], failed);
  cells[slot + 2] = Number(failed !== undefined);
  Atomics.add(cells, cell.done, 1);
  Atomics.notify(cells, cell.done);
  return true;
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
  const operators = loadOperators(koffi, at, cuda ? 'CUDAExecutionProvider' : null);

  const failure = (status) => {
    const message = getErrorMessage(status);
    releaseStatus(status);
    return new Error(message);
  };
  const known = new Map(); // what was executed, by name
  const issue = (list) => {
    for (let at = 0; at < list.length; at += 3) {
      const [first, second, bytes] = [list[at], list[at + 1], list[at + 2]];
      if (bytes !== 0n) device.copy(first, second, bytes);
      else {
        const status = runWithBinding(first, device.runOptions, second);
        if (status) throw Object.assign(failure(status), { at: at / 3 });
      }
    }
  };
  const forget = ({ commands }) => {
    device.forget(known.get(commands));
    known.delete(commands);
  };
  return {
    create({ model, env, options, pack, own }) {
      if (own) operators.add(own.domain, own.operators, device.launcher, own.room);
      const out = new BigUint64Array(1);
      const status = createSession(env, model, model.byteLength, options, pack, out);
      if (status) throw failure(status);
      return out[0];
    },
    execute({ commands, list }) {
      if (known.has(commands)) forget({ commands });
      const made = { issue: () => issue(list), repeats: 0 };
      known.set(commands, made);
      const start = performance.now();
      device.execute(made);
      cells[cell.microseconds] = 1000 * (performance.now() - start);
    },
    /** The session with these operators of our own is gone. */
    dropOperators: ({ room }) => operators.drop(room),
    /** Gives back what was made of commands. */
    forget,
    forgetAll() {
      for (const commands of [...known.keys()]) forget({ commands });
    },
    /** Commands once more; the result says when they are done. */
    begin: (commands) => device.begin(known.get(commands)),
    /** Whether somebody waits for this one to rest. */
    wanted: () => device.wanted(),
    /** Nothing runs any more. */
    rest: () => device.rest(),
  };
}

function openHost(koffi) {
  return {
    runOptions: null,
    copy: koffi.load('libc.so.6').func('memcpy', 'void *', ['void *', 'void *', 'size_t']),
    execute: ({ issue }) => issue(),
    begin({ issue }) {
      issue();
      return () => true;
    },
    wanted: () => false,
    rest() {},
    forget() {},
  };
}

/**
 * Everything goes through one stream. What is executed for the third time is recorded as a CUDA graph and launched as one from
 * then on. It stays as it was where the recording fails, holds work of the host, which must not be done twice, or copies from host
 * memory, which ONNX Runtime takes back.
 */
function openCuda(koffi, { runtime, stream, runOptions, turn, own }) {
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
  const makeEvent = cuda('cudaEventCreateWithFlags', P, 'uint');
  const destroyEvent = cuda('cudaEventDestroy', P);
  const recordEvent = cuda('cudaEventRecord', P, P);
  const queryEvent = library.func('cudaEventQuery', 'int', [P]);
  const [untimed, notReady] = [2, 600]; // cudaEventDisableTiming, cudaErrorNotReady
  setDevice(0);
  const launchKernel = koffi.load('libcuda.so.1').func('cuLaunchKernelEx', 'int', [P, P, P, P]);

  /** A run waits for its end, and gives back what it took from the host's memory, unless it is recorded. */
  let recording = false;

  const eventOf = () => {
    const out = new BigUint64Array(1);
    makeEvent(out, untimed);
    return out[0];
  };
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
  /** One device at a time in this process. */
  let held = false;
  const hold = () => {
    if (held) return;
    const [free, taken, wanted] = [turns.free, turns.taken, turns.wanted];
    if (Atomics.compareExchange(turn, 0, free, taken) !== free)
      while (Atomics.exchange(turn, 0, wanted) !== free) Atomics.wait(turn, 0, wanted);
    Atomics.store(turn, 1, own);
    held = true;
  };
  const rest = () => {
    if (!held) return;
    held = false;
    Atomics.store(turn, 1, 0);
    if (Atomics.exchange(turn, 0, turns.free) === turns.wanted) Atomics.notify(turn, 0);
  };
  /** What was begun is finished also when it fails. */
  const finished = (work) => {
    try {
      work();
    } finally {
      synchronize(stream);
    }
  };
  return {
    get runOptions() {
      return recording ? runOptions : null;
    },
    launcher: launcherOn(koffi, launchKernel, stream),
    copy: (to, from, bytes) => memcpy(to, from, bytes, onDevice, stream),
    rest,
    wanted: () => Atomics.load(turn, 0) === turns.wanted,
    forget({ instance, event }) {
      if (instance !== undefined) destroyInstance(instance);
      if (event !== undefined) destroyEvent(event);
    },
    execute({ issue }) {
      cells[cell.replayed] = 0;
      hold();
      try {
        finished(issue);
      } finally {
        rest();
      }
    },
    begin(commands) {
      hold();
      const { issue } = commands;
      commands.repeats += 1;
      if (commands.repeats === 2) commands.instance = record(issue);
      const { instance } = commands;
      cells[cell.replayed] = Number(instance !== undefined);
      if (instance === undefined) {
        finished(issue);
        return () => true;
      }
      launch(instance, stream);
      commands.event ??= eventOf();
      const { event } = commands;
      recordEvent(event, stream);
      return () => {
        const status = queryEvent(event);
        if (status !== 0 && status !== notReady) throw new Error(`cudaGraphLaunch: ${textOf(status)}`);
        return status === 0;
      };
    },
  };
}

/** What the cell of the turn says. */
const turns = { free: 0, taken: 1, wanted: 2 };

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
