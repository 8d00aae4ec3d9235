import { Worker } from 'node:worker_threads';
import { DslaError } from '@dsla/spec';

/** The thread that computes: requests are served in the order in which they are made. */
export interface Thread {
  /** Settles when the thread has ended by itself. */
  readonly lost: Promise<Error>;
  /** @throws Error with ONNX Runtime's text; `at` is the command that failed. */
  ask(request: { readonly kind: string } & Readonly<Record<string, unknown>>): Promise<unknown>;
  /** Commands that were executed, once more, by their name; the answer costs no message while steps follow closely. */
  again(commands: number): Promise<unknown>;
  /** How long the last commands took where they were executed, in microseconds. */
  readonly computed: number;
  /** The last commands were not issued one by one but launched as a recorded graph. */
  readonly replayed: boolean;
  /** Nobody waits for an answer, and it has not ended. */
  readonly idle: boolean;
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

/**
 * Cells of the memory that both threads see, by which a request can be rung for instead of sent: `asked` and `done` count such
 * requests. Each has a slot of three cells: its id, its commands, whether it failed.
 */
const cell = { line: 0, asked: 1, done: 2, microseconds: 3, sent: 4, replayed: 5, slots: 6 };
const slots = 4;
/** The line says whether the computing thread looks at them. */
const says = { deaf: 0, listening: 1 };

/**
 * How long the two sides wait awake for one another, in milliseconds: waking a thread takes part of a short step, and one that
 * waits awake takes a core from the threads that compute, where it is the CPU that does.
 */
export interface Patience {
  /** The caller's event loop for an answer, */
  readonly answer: number;
  /** the computing thread for the next step. */
  readonly next: number;
}

/** Starts worker.js; resolves when it is ready. @throws DslaError E_UNAVAILABLE */
export async function startThread(
  workerData: Readonly<Record<string, unknown>>,
  patience: Patience = { answer: 0.05, next: 0.5 },
): Promise<Thread> {
  const cells = new Int32Array(new SharedArrayBuffer(4 * (cell.slots + 3 * slots)));
  const line = { cells, cell, says, patience };
  const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: { ...workerData, line } });
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
  const settle = ({ id, result, error }: Reply): void => {
    const waiter = waiting.get(id);
    if (!waiter) return; // the thread has ended
    const { resolve, reject } = waiter;
    waiting.delete(id);
    if (waiting.size === 0) worker.unref();
    if (error) reject(new ThreadError(error.message, error.at));
    else resolve(result);
  };
  const request = (send: (id: number) => void): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (ended) {
        reject(ended);
        return;
      }
      worker.ref();
      const id = next;
      next = (next % (2 ** 31 - 1)) + 1; // fits a cell
      waiting.set(id, { resolve, reject });
      send(id);
    });
  const send = (message: Readonly<Record<string, unknown>>): void => {
    Atomics.add(cells, cell.sent, 1);
    worker.postMessage(message);
  };
  const rung: number[] = []; // ids in order
  let asked = 0;
  let done = 0;
  const collect = (): void => {
    for (; Atomics.load(cells, cell.done) !== done; done = (done + 1) | 0) {
      const [id, failed] = [rung.shift()!, cells[cell.slots + 3 * (done & (slots - 1)) + 2] === 1];
      if (!failed) settle({ id }); // one that failed is answered with a message
    }
  };
  let looking = false;
  let end = 0;
  const look = (): void => {
    collect();
    looking = rung.length > 0 && ended === undefined;
    if (!looking) return;
    if (performance.now() < end) {
      setImmediate(look);
      return;
    }
    const change = Atomics.waitAsync(cells, cell.done, done);
    if (change.async) void change.value.then(look);
    else setImmediate(look);
  };
  const ring = (id: number, commands: number): void => {
    const slot = cell.slots + 3 * (asked & (slots - 1));
    cells.set([id, commands, 0], slot);
    rung.push(id);
    asked = (asked + 1) | 0;
    Atomics.store(cells, cell.asked, asked);
    if (Atomics.load(cells, cell.line) === says.deaf) worker.postMessage({ kind: 'listen' });
    end = performance.now() + patience.answer;
    if (!looking) look();
  };
  worker.on('message', settle);
  worker.on('error', fail);
  worker.on('exit', (code) => fail(new Error(`exit code ${code}`)));
  await ready;
  return {
    lost,
    ask: (body) => request((id) => send({ id, ...body })),
    again: (commands) => request((id) => ring(id, commands)),
    get computed() {
      return cells[cell.microseconds]!;
    },
    get replayed() {
      return cells[cell.replayed] === 1;
    },
    get idle() {
      return waiting.size === 0 && ended === undefined;
    },
    tell: (request, transfer = []) => worker.postMessage(request, [...transfer]),
    async close() {
      closing = true;
      await worker.terminate();
    },
  };
}
