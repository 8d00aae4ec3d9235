import { setImmediate } from 'node:timers/promises';
import { throwIfAborted } from '@dsla/spec';

/** Lets signals and timers in between two steps: a backend that computes in this thread would keep Ctrl-C out. */
export async function pause(signal: AbortSignal): Promise<void> {
  await setImmediate();
  throwIfAborted(signal, 'dsla');
}
