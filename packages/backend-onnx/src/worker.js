// The thread that computes. Plain JavaScript, so that it starts alike from the sources (in tests) and from the built package.
// Messages name what is to be done by `kind`; those with an `id` are answered.

import { parentPort, workerData } from 'node:worker_threads';

const { cells, cell, says } = workerData.line;
const engine = workerData.binding === 'c-api' ? await openCApi(workerData) : await openNode(workerData);

const listenMs = 0.5;

parentPort.on('message', async ({ id, kind, ...request }) => {
  try {
    const result = await engine[kind](request);
    if (id !== undefined) parentPort.postMessage({ id, result });
  } catch (error) {
    if (id === undefined) throw error; // nobody waits for it: the thread ends
    refuse(id, error);
  }
  if (engine.again && (kind === 'execute' || kind === 'again')) listen();
});
parentPort.postMessage({ id: 0 });

function refuse(id, error) {
  parentPort.postMessage({ id, error: { message: String(error?.message ?? error), at: error?.at } });
}

/** For a moment after a step the next one is waited for awake: a message takes too long to arrive where steps are short. */
function listen() {
  Atomics.store(cells, cell.line, says.listening);
  let end = performance.now() + listenMs;
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
    end = performance.now() + listenMs;
  } while (
    performance.now() < end ||
    Atomics.compareExchange(cells, cell.line, says.listening, says.deaf) !== says.listening
  );
}

/** ONNX Runtime's C API by the addresses of its functions: handles are valid in every thread of the process. */
async function openCApi({ addresses }) {
  const { default: koffi } = await import('koffi');
  const P = 'void *';
  const at = (name, result, args) => koffi.decode(addresses[name], koffi.proto(null, result, args));
  const createSession = at('CreateSessionFromArrayWithPrepackedWeightsContainer', P, [P, P, 'size_t', P, P, P]);
  const runWithBinding = at('RunWithBinding', P, [P, P, P]);
  const getErrorMessage = at('GetErrorMessage', 'const char *', [P]);
  const releaseStatus = at('ReleaseStatus', 'void', [P]);
  const memcpy = koffi.load('libc.so.6').func('memcpy', P, [P, P, 'size_t']);

  const failure = (status) => {
    const message = getErrorMessage(status);
    releaseStatus(status);
    return new Error(message);
  };
  let last = []; // commands
  const execute = (commands) => {
    const start = performance.now();
    for (let at = 0; at < commands.length; at += 3) {
      const [first, second, bytes] = [commands[at], commands[at + 1], commands[at + 2]];
      if (bytes !== 0n) memcpy(first, second, bytes);
      else {
        const status = runWithBinding(first, null, second);
        if (status) throw Object.assign(failure(status), { at: at / 3 });
      }
    }
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
      execute(last);
    },
    /** The last commands once more. */
    again: () => execute(last),
  };
}

/** onnxruntime-node: its sessions and tensors belong to this thread, and so does the memory under them. */
async function openNode({ threads, profile }) {
  const { InferenceSession, Tensor } = await import('onnxruntime-node');
  const arrays = { float: Float32Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array };
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
    copy: ({ memory, from, bytes }) => copy(memory, 0, from, 0, bytes),
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
