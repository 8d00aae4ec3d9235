/** Collects disposables and disposes them in reverse order: Node 20 has no DisposableStack. */
export class Scope implements AsyncDisposable {
  #items: (Disposable | AsyncDisposable)[] = [];

  use<T extends Disposable | AsyncDisposable>(item: T): T {
    this.#items.push(item);
    return item;
  }

  /** Hands the content to a new scope: call it once construction has succeeded. */
  move(): Scope {
    const next = new Scope();
    next.#items = this.#items;
    this.#items = [];
    return next;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = [];
    for (let item = this.#items.pop(); item; item = this.#items.pop()) {
      try {
        if (Symbol.asyncDispose in item) await item[Symbol.asyncDispose]();
        else item[Symbol.dispose]();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors.length === 1 ? errors[0] : new AggregateError(errors);
  }
}
