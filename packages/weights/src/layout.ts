import { DslaError, elementCount, type StorageType } from '@dsla/spec';
import { lengthBytes, maxHeaderBytes } from './header.js';
import { fileBytes, spell } from './storage.js';

/** A tensor to be written. */
export interface TensorPlan {
  readonly name: string;
  readonly storage: StorageType;
  readonly shape: readonly number[];
}

/** Bytes of a tensor in a file. */
export function planBytes({ storage, shape }: TensorPlan): number {
  return elementCount(shape) * fileBytes[storage];
}

export interface Layout {
  /** The file up to the data: length, JSON, and spaces up to a multiple of 8. */
  readonly header: Uint8Array;
  /** Where every tensor begins in the file. */
  readonly offsets: ReadonlyMap<string, number>;
}

/** Places tensors end to end, wide elements first, so that each lies at a multiple of its element. @throws DslaError E_INPUT */
export function layout(
  tensors: readonly TensorPlan[],
  metadata: Readonly<Record<string, string>>,
  where: string,
): Layout {
  const entries = new Map<string, object>();
  if (Object.keys(metadata).length > 0) entries.set('__metadata__', metadata);
  const begins: [string, number][] = [];
  let next = 0;
  for (const plan of [...tensors].sort((a, b) => fileBytes[b.storage] - fileBytes[a.storage])) {
    const { name, storage, shape } = plan;
    if (name === '__metadata__' || entries.has(name)) wrong(where, 'tensor names must differ', name);
    if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
      wrong(`${where} tensor ${name}`, 'sizes must be integers of at least 0', shape);
    }
    const end = next + planBytes(plan);
    entries.set(name, { dtype: spell(storage), shape, data_offsets: [next, end] });
    begins.push([name, next]);
    next = end;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const length = Math.ceil(json.length / 8) * 8;
  if (length > maxHeaderBytes) wrong(where, `the header must be at most ${maxHeaderBytes} bytes`, length);
  const header = new Uint8Array(lengthBytes + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(json, lengthBytes);
  return { header, offsets: new Map(begins.map(([name, begin]) => [name, header.length + begin])) };
}

function wrong(where: string, rule: string, got: unknown): never {
  throw new DslaError('E_INPUT', { where, rule, got });
}
