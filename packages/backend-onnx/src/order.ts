/** How an execution tells how far it is. */
export interface Progress {
  /** Resolves once everything before it is done. */
  idle(): Promise<void>;
  /** It is handed over: the next execution may be prepared, and handed over too. */
  begun(): void;
}

/**
 * Keeps what the host does to memory in order with what the computing thread does: while nothing runs, work is done at once,
 * otherwise when its turn comes. An execution may be prepared while the one before it computes.
 */
export class Order {
  /** Everything so far is done. */
  #tail: Promise<unknown> = Promise.resolve();
  /** All executions so far are. */
  #executed: Promise<unknown> = Promise.resolve();
  /** What the next execution waits for. */
  #next: Promise<unknown> = Promise.resolve();
  #pending = 0;

  /** Runs `work` after everything before it; what comes later waits for it. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(work);
    this.#executed = this.#next = this.#add(result);
    return await result;
  }

  /** The same for what executions do not touch that come later: they do not wait for it. */
  async read<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#executed.then(work);
    void this.#add(result);
    return await result;
  }

  async execute(work: (progress: Progress) => Promise<void>): Promise<void> {
    const { promise, resolve } = settledLater();
    const [before, earlier] = [this.#tail, this.#executed];
    const result = this.#next.then(() => work({ idle: async () => void (await before), begun: resolve }));
    const done = this.#add(result);
    this.#executed = done;
    // Two at a time.
    this.#next = Promise.all([Promise.race([promise, done]), earlier]);
    await result;
  }

  /** A short piece of work that cannot fail. */
  after(work: () => void): void {
    if (this.#pending === 0) work();
    else void this.run(async () => work());
  }

  /** Resolves once everything so far is done. */
  async idle(): Promise<void> {
    await this.#tail;
  }

  /** Resolves once the result and everything before it is there, whether it failed or not. */
  #add(result: Promise<unknown>): Promise<void> {
    this.#pending += 1;
    const done = result.then(
      () => {},
      () => {},
    );
    const tail = Promise.all([this.#tail, done]).then(() => {
      this.#pending -= 1;
    });
    this.#tail = tail;
    return tail;
  }
}

function settledLater(): { readonly promise: Promise<void>; resolve(): void } {
  let settle: () => void = () => {};
  const promise = new Promise<void>((resolve) => {
    settle = resolve;
  });
  return { promise, resolve: () => settle() };
}
