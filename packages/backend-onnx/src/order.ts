/**
 * Keeps what the host does to memory in order with what the computing thread does: while nothing runs, work is done at once,
 * otherwise when its turn comes.
 */
export class Order {
  #tail: Promise<unknown> = Promise.resolve();
  #pending = 0;

  /** Runs `work` after everything before it; what comes later waits for it. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    this.#pending += 1;
    const result = this.#tail.then(work);
    this.#tail = result.then(
      () => this.#done(),
      () => this.#done(),
    );
    return await result;
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

  #done(): void {
    this.#pending -= 1;
  }
}
