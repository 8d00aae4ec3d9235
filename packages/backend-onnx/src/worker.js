// The thread that computes. Plain JavaScript, so that it starts alike from the sources (in tests) and from the built package.
// Messages in: { create } makes a session, { execute } runs commands in order; one message out for each.

import { parentPort, workerData } from 'node:worker_threads';

const engine = workerData.binding === 'c-api' ? await openCApi(workerData) : await openNode(workerData);

parentPort.on('message', async ({ id, kind, ...request }) => {
  try {
    parentPort.postMessage({ id, result: await engine[kind](request) });
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
