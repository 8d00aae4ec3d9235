import { DslaError, elementCount } from '@dsla/spec';
import { duplicateKey } from './json.js';
import { type FileType, fileBytes, parseType } from './storage.js';

// The safetensors format: 8 bytes little-endian header length, a JSON header, then the data without holes.

/** The limit of the format's own readers. */
export const maxHeaderBytes = 100_000_000;
export const lengthBytes = 8;

export interface TensorInfo {
  readonly storage: FileType;
  readonly shape: readonly number[];
  /** Path of the file that holds it. */
  readonly file: string;
  /** Where its first byte lies in the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface Header {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * Length of the JSON header from the first 8 bytes of a file.
 * @throws DslaError E_FORMAT when it exceeds the file or the format's limit.
 */
export function headerLength(first: Uint8Array, file: string, fileSize: number): number {
  if (first.length < lengthBytes) damaged(file, 'a file must hold the 8 bytes of the header length', fileSize);
  const length = Number(new DataView(first.buffer, first.byteOffset, lengthBytes).getBigUint64(0, true));
  if (length > maxHeaderBytes) damaged(file, `the header must be at most ${maxHeaderBytes} bytes`, length);
  if (lengthBytes + length > fileSize) {
    damaged(file, `the header of ${length} bytes must lie within the file`, `${fileSize} bytes`);
  }
  return length;
}

/**
 * Reads and checks a header.
 * @throws DslaError E_FORMAT naming the file, the tensor and the rule.
 */
export function parseHeader(json: Uint8Array, file: string, fileSize: number): Header {
  const start = lengthBytes + json.length; // of the data
  const { __metadata__: metadata = {}, ...entries } = parseObject(json, file);
  if (!isObject(metadata) || Object.values(metadata).some((value) => typeof value !== 'string')) {
    damaged(file, '__metadata__ must map names to strings', JSON.stringify(metadata));
  }
  const tensors = new Map<string, TensorInfo>();
  for (const [name, entry] of Object.entries(entries)) tensors.set(name, parseEntry(entry, name, file, start));
  checkCover(tensors, file, start, fileSize);
  return { tensors, metadata: metadata as Record<string, string> };
}

function parseObject(json: Uint8Array, file: string): Record<string, unknown> {
  let text: string;
  let value: unknown;
  try {
    // The format wants '{' as the first byte: no byte-order mark, no white space.
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
    value = JSON.parse(text);
  } catch (cause) {
    throw new DslaError('E_FORMAT', { where: file, rule: 'the header must be JSON in UTF-8', cause, cure: again });
  }
  if (!isObject(value) || json[0] !== 0x7b) damaged(file, 'the header must be a JSON object', text.slice(0, 20));
  const twice = duplicateKey(text);
  if (twice !== undefined) damaged(file, 'no name may stand twice in the header', twice);
  return value;
}

function parseEntry(entry: unknown, name: string, file: string, start: number): TensorInfo {
  const where = `${file} tensor ${name}`;
  if (!isObject(entry)) damaged(where, 'its header entry must be an object', JSON.stringify(entry));
  const { dtype, shape, data_offsets: offsets } = entry;
  const storage = typeof dtype === 'string' ? parseType(dtype) : undefined;
  if (!storage) {
    damaged(where, `dtype must be one of ${knownTypes}`, typeof dtype === 'string' ? dtype : JSON.stringify(dtype));
  }
  if (!isCounts(shape)) damaged(where, 'shape must be a list of integers of at least 0', JSON.stringify(shape));
  if (!isCounts(offsets) || offsets.length !== 2) {
    damaged(where, 'data_offsets must be two integers of at least 0', JSON.stringify(offsets));
  }
  const [begin, end] = offsets as [number, number];
  const bytes = elementCount(shape) * fileBytes[storage];
  if (!Number.isSafeInteger(bytes)) damaged(where, 'its size must be below 2^53 bytes', `shape [${shape}]`);
  if (end - begin !== bytes) {
    damaged(where, `data_offsets must span the ${bytes} bytes of ${dtype} [${shape}]`, `${begin}..${end}`);
  }
  return { storage, shape, file, offset: start + begin, bytes };
}

/** The tensors must lie end to end, from the header to the end of the file. */
function checkCover(tensors: ReadonlyMap<string, TensorInfo>, file: string, start: number, fileSize: number): void {
  const sorted = [...tensors].sort(([, a], [, b]) => a.offset - b.offset || a.bytes - b.bytes);
  let next = start;
  for (const [name, { offset, bytes }] of sorted) {
    if (offset !== next) {
      const rule = offset < next ? 'tensors must not overlap' : 'tensors must lie end to end, without gaps';
      damaged(`${file} tensor ${name}`, `${rule}: it must begin at ${next - start}`, offset - start);
    }
    next = offset + bytes;
  }
  if (next > fileSize) damaged(file, `it is truncated: its header promises ${next} bytes`, fileSize);
  if (next < fileSize) damaged(file, `it must end with its last tensor, at byte ${next}`, `${fileSize} bytes`);
}

const knownTypes = Object.keys(fileBytes).join(', ').toUpperCase();
const again = 'Copy or download the file again.';

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

function damaged(where: string, rule: string, got: unknown): never {
  throw new DslaError('E_FORMAT', { where, rule, got, cure: again });
}
