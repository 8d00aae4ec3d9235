import { describe, expect, it } from 'vitest';
import type { AttentionBackend, Device } from './backend.js';
import { DslaError, isDslaError, throwIfAborted } from './errors.js';
import { openBackend } from './registry.js';
import { Scope } from './scope.js';

describe('DslaError', () => {
  it('reads: where, rule, value, cure', () => {
    const error = new DslaError('E_INPUT', {
      where: 'sample',
      rule: 'top-p must be in (0, 1]',
      got: 2,
      cure: 'Use 0.9.',
    });
    expect(error.message).toBe('sample: top-p must be in (0, 1], got 2. Use 0.9.');
    expect(error.code).toBe('E_INPUT');
    expect(isDslaError(error)).toBe(true);
    expect(isDslaError(new Error('x'))).toBe(false);
  });

  it('shortens long values and keeps the cause', () => {
    const cause = new Error('disk');
    const error = new DslaError('E_IO', { where: 'w', rule: 'r', got: 'y'.repeat(1000), cause });
    expect(error.message.length).toBeLessThan(230);
    expect(error.cause).toBe(cause);
  });

  it('reports an abort with its own code', () => {
    expect(() => throwIfAborted(AbortSignal.abort(), 'generate')).toThrow(
      expect.objectContaining({ code: 'E_ABORTED' }),
    );
    expect(() => throwIfAborted(undefined, 'generate')).not.toThrow();
  });
});

describe('openBackend', () => {
  const backend = (name: string, obstacles: string[], open: () => Promise<Device>): AttentionBackend => ({
    specificationVersion: 1,
    name,
    obstacles: async () => obstacles,
    open,
  });
  const device = { backend: 'b' } as Device;

  it('takes the first that opens', async () => {
    const broken = backend('a', [], async () => Promise.reject(new Error('no memory')));
    expect(await openBackend([broken, backend('b', [], async () => device)])).toBe(device);
  });

  it('gives every reason when none opens', async () => {
    const missing = backend('a', ['onnxruntime-node is not installed'], async () => device);
    const broken = backend('b', [], async () => Promise.reject(new Error('no memory')));
    await expect(openBackend([missing, broken])).rejects.toThrow(
      /a: onnxruntime-node is not installed \| b: no memory/,
    );
  });
});

describe('Scope', () => {
  const item = (name: string, log: string[]) => ({ [Symbol.dispose]: () => void log.push(name) });

  it('disposes in reverse order, also when one fails', async () => {
    const log: string[] = [];
    const scope = new Scope();
    scope.use(item('a', log));
    scope.use({ [Symbol.asyncDispose]: async () => Promise.reject(new Error('b')) });
    scope.use(item('c', log));
    await expect(scope[Symbol.asyncDispose]()).rejects.toThrow('b');
    expect(log).toEqual(['c', 'a']);
  });

  it('moves its content once construction has succeeded', async () => {
    const log: string[] = [];
    const first = new Scope();
    first.use(item('a', log));
    const second = first.move();
    await first[Symbol.asyncDispose]();
    expect(log).toEqual([]);
    await second[Symbol.asyncDispose]();
    expect(log).toEqual(['a']);
  });
});
