// The thread that computes. Plain JavaScript, so that it starts alike from the sources (in tests) and from the built package.
// Messages name what is to be done by `kind`; those with an `id` are answered.

import { parentPort, workerData } from 'node:worker_threads';

const engine = workerData.binding === 'c-api' ? await openCApi(workerData) : await openNode(workerData);

parentPort.on('message', async ({ id, kind, ...request }) => {
  try {
    const result = await engine[kind](request);
    if (id !== undefined) parentPort.postMessage({ id, result });
  } catch (error) {
    parentPort.postMessage({ id, error: { message: String(error?.message ?? error), at: error?.at } });
  }
});
parentPort.postMessage({ id: 0 });

/** Runs command after command; an error says at which one. */
async function inOrder(commands, run) {
  for (let at = 0; at < commands.length; at++) {
    try {
      const pending = run(commands[at]);
      if (pending) await pending;
    } catch (error) {
      throw Object.assign(error, { at });
    }
  }
}

/** ONNX Runtime's C API by the addresses of its functions: handles are valid in every thread of the process. */
async function openCApi({ addresses }) {
  const { default: koffi } = await import('koffi');
  const P = 'void *';
  const at = (name, result, args) => koffi.decode(addresses[name], koffi.proto(null, result, args));
  const createSession = at('CreateSessionFromArray', P, [P, P, 'size_t', P, P]);
  const runWithBinding = at('RunWithBinding', P, [P, P, P]);
  const getErrorMessage = at('GetErrorMessage', 'const char *', [P]);
  const releaseStatus = at('ReleaseStatus', 'void', [P]);
  const memcpy = koffi.load('libc.so.6').func('memcpy', P, [P, P, 'size_t']);

  const check = (status) => {
    if (!status) return;
    const message = getErrorMessage(status);
    releaseStatus(status);
    throw new Error(message);
  };
  const run = ([first, second, bytes]) => {
    if (bytes === undefined) check(runWithBinding(first, null, second));
    else memcpy(first, second, bytes);
  };
  return {
    create({ model, env, options }) {
      const out = new BigUint64Array(1);
      check(createSession(env, model, model.byteLength, options, out));
      return out[0];
    },
    execute: ({ commands }) => inOrder(commands, run),
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
  const run = ([first, toByte, from, fromByte, bytes]) => {
    if (toByte === undefined) {
      const { session, inputs, outputs } = bindings.get(first);
      return sessions.get(session).run(inputs, outputs);
    }
    copy(first, toByte, from, fromByte, bytes);
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
    execute: ({ commands }) => inOrder(commands, run),
  };
}
