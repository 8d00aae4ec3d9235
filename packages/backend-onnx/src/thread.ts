import { Worker } from 'node:worker_threads';
import { DslaError } from '@dsla/spec';

/** The thread that computes: requests are served in the order in which they are made. */
export interface Thread {
  /** Settles when the thread has ended by itself. */
  readonly lost: Promise<Error>;
  /** @throws Error with ONNX Runtime's text; `at` is the command that failed. */
  ask(request: { readonly kind: string } & Readonly<Record<string, unknown>>): Promise<unknown>;
  /** A request that cannot fail and gets no answer. */
  tell(request: { readonly kind: string } & Readonly<Record<string, unknown>>, transfer?: readonly ArrayBuffer[]): void;
  close(): Promise<void>;
}

export class ThreadError extends Error {
  readonly at: number | undefined;

  constructor(message: string, at: number | undefined) {
    super(message);
    this.at = at;
  }
}

interface Reply {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: { readonly message: string; readonly at?: number };
}

/** Starts worker.js; resolves when it is ready. @throws DslaError E_UNAVAILABLE */
export async function startThread(workerData: Readonly<Record<string, unknown>>): Promise<Thread> {
  const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData });
  const waiting = new Map<number, { resolve(result: unknown): void; reject(error: unknown): void }>();
  let next = 1;
  let ended: Error | undefined;
  let closing = false;
  let loss: (error: Error) => void = () => {};
  const lost = new Promise<Error>((resolve) => {
    loss = resolve;
  });
  const fail = (cause: unknown): void => {
    if (closing || ended) return;
    const error = new DslaError('E_DEVICE', { where: 'onnx', rule: 'the computing thread ended', cause });
    ended = error;
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
    loss(error);
  };
  const ready = new Promise<void>((resolve, reject) => {
    waiting.set(0, { resolve: () => resolve(), reject });
  });
  worker.on('message', ({ id, result, error }: Reply) => {
    const { resolve, reject } = waiting.get(id)!;
    waiting.delete(id);
    if (waiting.size === 0) worker.unref();
    if (error) reject(new ThreadError(error.message, error.at));
    else resolve(result);
  });
  worker.on('error', fail);
  worker.on('exit', (code) => fail(new Error(`exit code ${code}`)));
  await ready;
  return {
    lost,
    ask: (request) =>
      new Promise((resolve, reject) => {
        if (ended) {
          reject(ended);
          return;
        }
        worker.ref();
        const id = next++;
        waiting.set(id, { resolve, reject });
        worker.postMessage({ id, ...request });
      }),
    tell: (request, transfer = []) => worker.postMessage(request, [...transfer]),
    async close() {
      closing = true;
      await worker.terminate();
    },
  };
}
