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

/** What a thread computes with, */
export interface Engine {
  readonly binding: string;
  readonly [setting: string]: unknown;
}

/** and the device that it computes for. */
export interface Settings {
  readonly patience?: Patience;
  readonly [setting: string]: unknown;
}

/** Threads whose device is gone, by their engine: koffi gives nothing back when a thread ends, so the next device takes them. */
const spare = new Map<string, Runner[]>();

/** A thread for a device, started where none is to spare. @throws DslaError E_DEVICE */
export async function startThread(engine: Engine, settings: Settings = {}): Promise<Thread> {
  const patience = settings.patience ?? { answer: 0.05, next: 0.5 };
  const key = JSON.stringify(engine, (_, value) => (typeof value === 'bigint' ? `${value}` : value));
  const unused = spare.get(key) ?? [];
  spare.set(key, unused);
  const runner = unused.pop() ?? (await startRunner(engine));
  if (runner.ended) return await startThread(engine, settings);
  try {
    await runner.ask({ kind: 'open', ...settings, patience });
  } catch (cause) {
    await runner.end();
    throw new DslaError('E_DEVICE', { where: 'onnx', rule: 'the computing thread must open its device', cause });
  }
  runner.answerPatience = patience.answer;
  let gone = false;
  const lost = new Promise<Error>((resolve) => {
    runner.loss = (error) => {
      if (!gone) resolve(error);
    };
  });
  return {
    lost,
    ask: (request) => runner.ask(request),
    again: (commands) => runner.again(commands),
    get computed() {
      return runner.cells[cell.microseconds]!;
    },
    get replayed() {
      return runner.cells[cell.replayed] === 1;
    },
    tell(request, transfer = []) {
      if (!gone) runner.tell(request, transfer);
    },
    async close() {
      if (gone) return;
      gone = true;
      if (engine.binding === 'c-api' && !runner.ended && !runner.busy) unused.push(runner);
      else await runner.end();
    },
  };
}

/** A running worker.js. */
interface Runner extends Pick<Thread, 'ask' | 'again' | 'tell'> {
  readonly cells: Int32Array;
  /** Requests wait for their answers. */
  readonly busy: boolean;
  /** It has ended by itself. */
  readonly ended: boolean;
  answerPatience: number;
  /** Called when it ends by itself. */
  loss: (error: Error) => void;
  end(): Promise<void>;
}

/** Resolves when it is ready. */
async function startRunner(engine: Engine): Promise<Runner> {
  const cells = new Int32Array(new SharedArrayBuffer(4 * (cell.slots + 3 * slots)));
  const line = { cells, cell, says };
  const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: { ...engine, line } });
  const waiting = new Map<number, { resolve(result: unknown): void; reject(error: unknown): void }>();
  let next = 1;
  let ended: Error | undefined;
  let closing = false;
  const fail = (cause: unknown): void => {
    if (closing || ended) return;
    const error = new DslaError('E_DEVICE', { where: 'onnx', rule: 'the computing thread ended', cause });
    ended = error;
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
    runner.loss(error);
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
    end = performance.now() + runner.answerPatience;
    if (!looking) look();
  };
  const runner: Runner = {
    cells,
    answerPatience: 0,
    loss: () => {},
    get busy() {
      return waiting.size > 0;
    },
    get ended() {
      return ended !== undefined;
    },
    ask: (body) => request((id) => send({ id, ...body })),
    again: (commands) => request((id) => ring(id, commands)),
    tell: (request, transfer = []) => worker.postMessage(request, [...transfer]),
    async end() {
      closing = true;
      await worker.terminate();
    },
  };
  worker.on('message', settle);
  worker.on('error', fail);
  worker.on('exit', (code) => fail(new Error(`exit code ${code}`)));
  await ready;
  return runner;
}
