import { DslaError } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

/** The tensors that outlive a tidy: what a device counts, and frees at its end. */
export class Holder {
  readonly #held = new Set<Tensor>();
  #bytes = 0;

  /** Takes a tensor out of its tidy. */
  keep<T extends Tensor>(tensor: T): T {
    tf.keep(tensor);
    this.#held.add(tensor);
    this.#bytes += bytesOf(tensor);
    return tensor;
  }

  /** Frees a tensor once; later calls do nothing. */
  release(tensor: Tensor): void {
    if (!this.#held.delete(tensor)) return;
    this.#bytes -= bytesOf(tensor);
    tensor.dispose();
  }

  releaseAll(): void {
    for (const tensor of [...this.#held]) this.release(tensor);
  }

  get buffers(): number {
    return this.#held.size;
  }

  get bytes(): number {
    return this.#bytes;
  }
}

export function bytesOf(tensor: Tensor): number {
  return tensor.size * 4; // float32 and int32 only
}

/** The error of every use after dispose. */
export function disposed(where: string): DslaError {
  return new DslaError('E_DISPOSED', {
    where,
    rule: 'must not be used after dispose',
    cure: 'Keep it alive for as long as it is used.',
  });
}

export function invalid(where: string, rule: string, got: unknown): DslaError {
  return new DslaError('E_INPUT', { where, rule, got });
}
