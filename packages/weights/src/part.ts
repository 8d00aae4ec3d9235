import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { DslaError, type StorageType, toFloat16 } from '@dsla/spec';
import { toBfloat16 } from './bfloat16.js';
import { io } from './io.js';
import { layout, planBytes, type TensorPlan } from './layout.js';

/** float32 values (converted to the storage type), raw bits of f16 and bf16, or integers. */
export type Values = Float32Array | Uint16Array | Int32Array | Uint32Array;

/** A file that is being written under another name. */
export interface Part extends AsyncDisposable {
  readonly path: string;
  /** Appends to one of its tensors. */
  write(name: string, values: Values): Promise<void>;
  /** All bytes on the disk, the file closed. */
  complete(): Promise<void>;
  /** Gives the file its name. */
  publish(): Promise<void>;
}

/** Elements converted and written at once. */
const pieceElements = 2 ** 21;

/** Disposing a part removes what has not been published. */
export async function openPart(
  path: string,
  tensors: readonly TensorPlan[],
  metadata: Readonly<Record<string, string>>,
): Promise<Part> {
  const { header, offsets } = layout(tensors, metadata, path);
  const temporary = `${path}.${process.pid}.partial`;
  const handle = await io(path, () => open(temporary, 'w'));
  const places = new Map<string, { readonly storage: StorageType; next: number; readonly end: number }>();
  for (const plan of tensors) {
    const next = offsets.get(plan.name)!;
    places.set(plan.name, { storage: plan.storage, next, end: next + planBytes(plan) });
  }
  let opened = true;
  const close = async (): Promise<void> => {
    if (!opened) return;
    opened = false;
    await handle.close();
  };
  const remove = async (): Promise<void> => {
    await close();
    await rm(temporary, { force: true });
  };
  try {
    await io(path, () => writeFully(handle, header, 0));
  } catch (error) {
    await remove();
    throw error;
  }
  return {
    path,
    async write(name, values) {
      const where = `${path} tensor ${name}`;
      const place = places.get(name)!;
      if (!opened) throw new DslaError('E_DISPOSED', { where, rule: 'the writer has been closed' });
      const encode = encoder(values, place.storage, where);
      for (let from = 0; from < values.length; from += pieceElements) {
        const bytes = encode(from, Math.min(from + pieceElements, values.length));
        const position = place.next;
        place.next += bytes.length;
        if (place.next > place.end) {
          const rule = `it must be given the values of its shape, ${place.end - position} bytes are left`;
          throw new DslaError('E_INPUT', { where, rule, got: bytes.length });
        }
        await io(path, () => writeFully(handle, bytes, position));
      }
    },
    async complete() {
      const lacking = [...places].filter(([, { next, end }]) => next < end).map(([name]) => name);
      if (lacking.length > 0) {
        throw new DslaError('E_INPUT', { where: path, rule: 'every tensor must be written in full', got: lacking });
      }
      await io(path, () => handle.sync());
      await io(path, close);
    },
    publish: () => io(path, () => rename(temporary, path)),
    [Symbol.asyncDispose]: () => io(path, remove),
  };
}

/** Turns a stretch of values into the bytes of a storage type. */
function encoder(values: Values, storage: StorageType, where: string): (from: number, to: number) => Uint8Array {
  const raw = (part: Values) => new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
  const half = storage === 'f16' || storage === 'bf16';
  if (values instanceof Float32Array && half) {
    const round = storage === 'f16' ? toFloat16 : toBfloat16;
    return (from, to) => raw(round(values.subarray(from, to)));
  }
  const own = half ? Uint16Array : { f32: Float32Array, i32: Int32Array, u32: Uint32Array }[storage];
  if (values instanceof own) return (from, to) => raw(values.subarray(from, to));
  const rule = `a ${storage} tensor must be given ${half ? 'a Float32Array or Uint16Array' : `a ${own.name}`}`;
  throw new DslaError('E_INPUT', { where, rule, got: values.constructor.name });
}

async function writeFully(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await handle.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}
