import { describe, expect, it } from 'vitest';
import { Order } from './order.js';

interface Work {
  /** An execution that says `name begins`, and `name ends` once `end` is called. */
  execute(name: string, early?: boolean): { end(): void; readonly done: Promise<void> };
  readonly said: string[];
}

function work(order: Order): Work {
  const said: string[] = [];
  return {
    said,
    execute(name, early = true) {
      let end: () => void = () => {};
      const ended = new Promise<void>((resolve) => {
        end = resolve;
      });
      const done = order.execute(async ({ begun }) => {
        said.push(`${name} begins`);
        if (early) begun();
        await ended;
        said.push(`${name} ends`);
      });
      return { end: () => end(), done };
    },
  };
}

const settled = async (): Promise<void> => {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
};

describe('order', () => {
  it('an execution begins while the one before it computes, a third does not', async () => {
    const order = new Order();
    const { execute, said } = work(order);
    const [a, b, c] = [execute('a'), execute('b'), execute('c')];
    await settled();
    expect(said).toEqual(['a begins', 'b begins']);
    a.end();
    await settled();
    expect(said).toEqual(['a begins', 'b begins', 'a ends', 'c begins']);
    for (const each of [b, c]) each.end();
    await order.idle();
    expect(said.slice(-2)).toEqual(['b ends', 'c ends']);
  });

  it('an execution that has not begun keeps the next one waiting', async () => {
    const order = new Order();
    const { execute, said } = work(order);
    const a = execute('a', false);
    execute('b').end();
    await settled();
    expect(said).toEqual(['a begins']);
    a.end();
    await order.idle();
    expect(said).toEqual(['a begins', 'a ends', 'b begins', 'b ends']);
  });

  it('a read waits for the executions before it and keeps none waiting; other work waits for all and keeps all waiting', async () => {
    const order = new Order();
    const { execute, said } = work(order);
    const a = execute('a');
    const read = order.read(async () => said.push('read'));
    const b = execute('b');
    order.after(() => said.push('work'));
    execute('c').end();
    await settled();
    expect(said).toEqual(['a begins', 'b begins']);
    a.end();
    await read;
    expect(said).toEqual(['a begins', 'b begins', 'a ends', 'read']);
    b.end();
    await order.idle();
    expect(said.slice(4)).toEqual(['b ends', 'work', 'c begins', 'c ends']);
  });

  it('short work is done at once where nothing stands in its way', async () => {
    const order = new Order();
    const { execute, said } = work(order);
    order.after(() => said.push('first'));
    const a = execute('a');
    order.after(() => said.push('second'));
    expect(said).toEqual(['first']);
    a.end();
    await order.idle();
    expect(said).toEqual(['first', 'a begins', 'a ends', 'second']);
  });

  it('what fails keeps nothing from going on', async () => {
    const order = new Order();
    const failing = order.execute(async () => {
      throw new Error('broken');
    });
    const after = order.run(async () => 'done');
    await expect(failing).rejects.toThrow('broken');
    expect(await after).toBe('done');
  });

  it('an execution may wait until nothing runs', async () => {
    const order = new Order();
    const { execute, said } = work(order);
    const a = execute('a');
    const b = order.execute(async ({ idle }) => {
      said.push('b prepares');
      await idle();
      said.push('b begins');
    });
    await settled();
    expect(said).toEqual(['a begins', 'b prepares']);
    a.end();
    await b;
    expect(said.slice(2)).toEqual(['a ends', 'b begins']);
  });
});
