import { DslaError } from '@dsla/spec';

/** What the interpreter computes with. */
export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

/** Counts what a device holds, so that a leak is a number. */
export class Tally {
  buffers = 0;
  bytes = 0;

  /** Zeros. @throws DslaError E_MEMORY */
  take(where: string, length: number): Float64Array {
    let data: Float64Array;
    try {
      data = new Float64Array(length);
    } catch (cause) {
      throw new DslaError('E_MEMORY', {
        where,
        rule: 'the host must have the memory it asks for',
        got: `${length * 8} bytes, ${this.bytes} held already`,
        cure: 'Lower the number of slots or their capacity.',
        cause,
      });
    }
    this.buffers += 1;
    this.bytes += data.byteLength;
    return data;
  }

  give(data: Float64Array): void {
    this.buffers -= 1;
    this.bytes -= data.byteLength;
  }
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
