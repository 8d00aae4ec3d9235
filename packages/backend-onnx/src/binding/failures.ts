import { DslaError } from '@dsla/spec';
import { ThreadError } from '../thread.js';
import type { CommandPlace } from './binding.js';

/**
 * Memory is taken lazily by the system, which would kill the process later instead of refusing now.
 * @throws DslaError E_MEMORY
 */
export function refuseAbsurd(bytes: number, where: string): void {
  const free = process.availableMemory();
  if (!(bytes <= free)) throw outOfMemory(bytes, free, where);
}

export function outOfMemory(bytes: number, free: number, where: string, cause?: unknown): DslaError {
  return new DslaError('E_MEMORY', {
    where,
    rule: `${bytes} bytes of memory must be available, ${free} are`,
    cure: 'Use fewer slots or a smaller capacity, or free other states.',
    details: { wanted: bytes, free },
    cause,
  });
}

/** What ONNX Runtime said, and where. `free`: bytes of memory that were. */
export function deviceError(cause: unknown, where: string, free?: number): DslaError {
  if (cause instanceof DslaError) return cause;
  const { message } = cause as Error;
  const wanted = /Failed to allocate memory for requested buffer of size (\d+)/.exec(message)?.[1];
  if (wanted !== undefined || /CUDA failure 2: out of memory/.test(message)) {
    const bytes = wanted === undefined ? 'enough' : `${wanted} bytes of`;
    return new DslaError('E_MEMORY', {
      where,
      rule: `${bytes} memory for what is computed must be available${free === undefined ? '' : `, ${free} bytes are`}`,
      cure: 'Use fewer tokens a step, fewer slots or a smaller capacity.',
      details: { ...(wanted !== undefined && { wanted: Number(wanted) }), ...(free !== undefined && { free }) },
      cause,
    });
  }
  return new DslaError('E_DEVICE', { where, rule: message, cause });
}

/** The place of the command that an error of the thread names. */
export function atCommand(error: unknown, places: readonly (CommandPlace | undefined)[]): string {
  const place = error instanceof ThreadError && error.at !== undefined ? places[error.at] : undefined;
  if (!place) return 'onnx';
  const { name } = place.kernel.model;
  return place.row === undefined ? name : `${name} row ${place.row}`;
}
