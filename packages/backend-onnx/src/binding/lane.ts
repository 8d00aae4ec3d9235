import { createHash } from 'node:crypto';
import type { Thread } from '../thread.js';
import type { Cuda } from './cuda.js';
import type { Handle } from './ort-api.js';

/**
 * What a device computes with and leaves to the next one of its kind. What ends keeps memory for good: koffi that of a thread, ONNX
 * Runtime and cuDNN some of every session on CUDA (docs/results/onnx-cuda.md).
 */
export interface Lane {
  readonly thread: Thread;
  readonly cuda: Cuda | undefined;
  /** Sessions share the environment's thread pool. */
  readonly shared: boolean;
  /** Of sessions on CUDA. */
  readonly shelf: Shelf | undefined;
  /** Called when the thread has ended by itself; who computes with it sets it. */
  onLost: (error: Error) => void;
}

/** A session and what must live as long. */
export interface HeldSession {
  readonly handle: Handle;
  release(): void;
}

const lanes = new Map<string, Lane[]>();

/** One that nobody uses. */
export function takeLane(kind: string): Lane | undefined {
  const idle = lanes.get(kind) ?? [];
  for (let lane = idle.pop(); lane; lane = idle.pop()) if (lane.thread.idle) return lane;
  return undefined;
}

export function leaveLane(kind: string, lane: Lane): void {
  lanes.set(kind, [...(lanes.get(kind) ?? []), lane]);
}

/** Idle sessions that are kept. */
const kept = 64;

/** Idle sessions without constants, which nothing ties to the device that made them. */
export class Shelf {
  /** The longest idle first. */
  readonly #idle: { readonly key: string; readonly session: HeldSession }[] = [];

  /** Equal models have equal keys. */
  static keyOf(model: Uint8Array): string {
    return createHash('sha256').update(model).digest('base64');
  }

  take(key: string): HeldSession | undefined {
    const at = this.#idle.findIndex((each) => each.key === key);
    return at < 0 ? undefined : this.#idle.splice(at, 1)[0]!.session;
  }

  put(key: string, session: HeldSession): void {
    this.#idle.push({ key, session });
    if (this.#idle.length > kept) this.#idle.shift()!.session.release();
  }

  /** Releases all; false where there are none. */
  clear(): boolean {
    const all = this.#idle.splice(0);
    for (const { session } of all) session.release();
    return all.length > 0;
  }
}
