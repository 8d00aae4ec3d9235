import type { FileHandle } from 'node:fs/promises';
import { DslaError, elementCount, type HostTensor, throwIfAborted } from '@dsla/spec';
import { checkFinite, convert, type FloatArray, type FloatType } from './convert.js';
import type { TensorInfo } from './header.js';
import { readFully } from './io.js';
import { fileBytes } from './storage.js';

export interface FloatOptions {
  readonly as: 'f32' | 'f16';
  /** Takes element `index` of the first axis, which disappears. */
  readonly index?: number;
  /** Takes rows start, start + step, ... of the first axis (of what `index` left). */
  readonly rows?: { readonly start: number; readonly step: number };
  /** Refuse NaN and infinity; on unless false. */
  readonly finite?: boolean;
}

/** Bytes read at once: peak memory is the result and two or three of these. */
const pieceBytes = 8 * 2 ** 20;

/** The wanted elements of a tensor: `runs` stretches of `length` elements, `stride` apart, from `start` on. */
interface Selection {
  readonly shape: readonly number[];
  readonly start: number;
  readonly length: number;
  readonly stride: number;
  readonly runs: number;
}

/** @throws DslaError E_UNSUPPORTED (not floats), E_INPUT (index or rows out of range), E_FORMAT (not finite), E_MEMORY, E_IO */
export async function readFloats(
  handle: FileHandle,
  info: TensorInfo,
  where: string,
  options: FloatOptions,
  signal: AbortSignal | undefined,
): Promise<HostTensor> {
  const storage = floatType(info, where);
  const { shape, start, length, stride, runs } = select(info.shape, options, where);
  const data = allocate(runs * length, options.as, where);
  const size = fileBytes[storage];
  const end = (start + (runs - 1) * stride + length) * size;
  // Where runs lie close together, one read serves many of them.
  const ahead = stride * size < pieceBytes / 2 ? pieceBytes : Math.min(pieceBytes, length * size);
  const bytes = buffered(handle, info, ahead, end);
  const piece = pieceBytes / size;
  let done = 0;
  for (let run = 0; run < runs; run++) {
    for (let from = 0; from < length; from += piece) {
      throwIfAborted(signal, where);
      const count = Math.min(piece, length - from);
      const { buffer, byteOffset } = await bytes((start + run * stride + from) * size, count * size);
      const Elements = storage === 'f32' ? Float32Array : Uint16Array;
      convert(new Elements(buffer, byteOffset, count), storage, data, done);
      if (options.finite !== false) checkFinite(data, done, count, where);
      done += count;
    }
  }
  return { dtype: options.as, shape, data };
}

/** Reads bytes of a tensor through a buffer of `ahead` bytes, never beyond `end`. A result is valid until the next call. */
function buffered(
  handle: FileHandle,
  info: TensorInfo,
  ahead: number,
  end: number,
): (offset: number, count: number) => Promise<Uint8Array<ArrayBuffer>> {
  const buffer = new Uint8Array(Math.max(0, Math.min(ahead, end)));
  let from = 0; // offsets within the tensor that the buffer holds
  let to = 0;
  return async (offset, count) => {
    if (offset < from || offset + count > to) {
      from = offset;
      to = Math.min(offset + buffer.length, end);
      await readFully(handle, info.file, buffer.subarray(0, to - from), info.offset + from);
    }
    return buffer.subarray(offset - from, offset - from + count);
  };
}

function select(stored: readonly number[], { index, rows }: FloatOptions, where: string): Selection {
  let shape = stored;
  let start = 0;
  if (index !== undefined) {
    const [first = 0, ...rest] = shape;
    if (!(Number.isInteger(index) && index >= 0 && index < first))
      outside(where, `index must be in 0..${first - 1}`, index);
    shape = rest;
    start = index * elementCount(rest);
  }
  if (!rows) return { shape, start, length: elementCount(shape), stride: 0, runs: 1 };
  const [first = 0, ...rest] = shape;
  if (!(Number.isInteger(rows.start) && rows.start >= 0 && rows.start < first)) {
    outside(where, `the first row must be in 0..${first - 1}`, rows.start);
  }
  if (!(Number.isInteger(rows.step) && rows.step >= 1)) outside(where, 'step must be at least 1', rows.step);
  const count = Math.ceil((first - rows.start) / rows.step);
  const width = elementCount(rest);
  return {
    shape: [count, ...rest],
    start: start + rows.start * width,
    length: width,
    stride: rows.step * width,
    runs: count,
  };
}

function floatType(info: TensorInfo, where: string): FloatType {
  if (info.storage === 'f32' || info.storage === 'f16' || info.storage === 'bf16') return info.storage;
  throw new DslaError('E_UNSUPPORTED', {
    where,
    rule: 'only f32, f16 and bf16 can be read as floats',
    got: info.storage,
    cure: 'Use a checkpoint that is not quantised.',
  });
}

function allocate(count: number, as: 'f32' | 'f16', where: string): FloatArray {
  try {
    return as === 'f32' ? new Float32Array(count) : new Uint16Array(count);
  } catch (cause) {
    const bytes = count * fileBytes[as];
    throw new DslaError('E_MEMORY', {
      where,
      rule: `${bytes} bytes could not be allocated`,
      cause,
      cure: 'Free some memory.',
    });
  }
}

function outside(where: string, rule: string, got: unknown): never {
  throw new DslaError('E_INPUT', { where, rule, got });
}
