import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { onnxBackend } from './index.js';
import { startThread } from './thread.js';

const workerData = { binding: 'node', threads: 1, packs: false };

describe('the computing thread', () => {
  it('serves requests in order', async () => {
    const thread = await startThread(workerData);
    thread.tell({ kind: 'hold', memory: 1, buffer: new ArrayBuffer(4) });
    const before = thread.ask({ kind: 'read', memory: 1, bytes: 4 });
    thread.tell({ kind: 'write', memory: 1, data: new Uint8Array([1, 2, 3, 4]) });
    const after = thread.ask({ kind: 'read', memory: 1, bytes: 4 });
    expect([new Uint8Array((await before) as ArrayBuffer), new Uint8Array((await after) as ArrayBuffer)]).toEqual([
      new Uint8Array(4),
      new Uint8Array([1, 2, 3, 4]),
    ]);
    await thread.close();
  });

  it('answers a request that fails with the error', async () => {
    const thread = await startThread(workerData);
    await expect(thread.ask({ kind: 'execute', commands: [[7]] })).rejects.toMatchObject({ at: 0 });
    await thread.close();
  });

  it('is lost when something fails that cannot, and refuses all that was asked and will be', async () => {
    const thread = await startThread(workerData);
    thread.tell({ kind: 'release', session: 7 });
    const lost = { code: 'E_DEVICE', message: expect.stringContaining('the computing thread ended') };
    await expect(thread.ask({ kind: 'read', memory: 7, bytes: 4 })).rejects.toBeInstanceOf(Error);
    expect(await thread.lost).toMatchObject(lost);
    await expect(thread.ask({ kind: 'read', memory: 7, bytes: 4 })).rejects.toMatchObject(lost);
    await thread.close();
  });

  it('serves one device after another', async () => {
    const product = async (): Promise<void> => {
      await using device = await onnxBackend.open({ threads: 1, extra: { binding: 'c-api' } });
      using buffer = device.upload({ dtype: 'f32', shape: [2], data: Float32Array.of(1, 2) });
      expect([...(await device.download(buffer)).data]).toEqual([1, 2]);
    };
    await product();
    const before = await nextThread();
    for (let device = 0; device < 3; device++) await product();
    expect((await nextThread()) - before).toBe(1);
  });
});

/** Number of a new thread: they are counted as they are made. */
async function nextThread(): Promise<number> {
  const worker = new Worker('', { eval: true });
  const { threadId } = worker;
  await worker.terminate();
  return threadId;
}
