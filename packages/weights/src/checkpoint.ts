import type { FileHandle } from 'node:fs/promises';
import { DslaError, type HostTensor, Scope, throwIfAborted } from '@dsla/spec';
import { type FloatOptions, readFloats } from './floats.js';
import { type Header, headerLength, lengthBytes, parseHeader, type TensorInfo } from './header.js';
import { openFile, readFully } from './io.js';
import { findShards, type Shards } from './shards.js';

/** An open checkpoint: its headers are in memory, its tensors are read on demand. */
export interface Checkpoint extends AsyncDisposable {
  /** The file or folder that was opened. */
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** `__metadata__` of all files together. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Raw bytes of a tensor, or of the bytes start (inclusive) to end (exclusive) of it. The result is the caller's. */
  read(name: string, range?: { readonly start: number; readonly end: number }): Promise<Uint8Array<ArrayBuffer>>;
  /** Values of an f32, f16 or bf16 tensor, or part of one, with at most some 30 MB besides the result. */
  readFloats(name: string, options: FloatOptions): Promise<HostTensor>;
}

export interface OpenCheckpointOptions {
  /** Stops the opening and every later read. */
  readonly signal?: AbortSignal;
}

/**
 * Opens a safetensors file, or a folder with `model.safetensors` or the shards of `model.safetensors.index.json`, and checks
 * every header.
 * @throws DslaError E_IO, E_FORMAT, E_ABORTED; nothing is left open.
 */
export async function openCheckpoint(path: string, options: OpenCheckpointOptions = {}): Promise<Checkpoint> {
  throwIfAborted(options.signal, path);
  const shards = await findShards(path);
  await using scope = new Scope();
  const files: OpenFile[] = [];
  for (const file of shards.files) {
    throwIfAborted(options.signal, path);
    files.push(await openSafetensors(file, scope));
  }
  const tensors = merge(files, shards, path);
  return checkpoint(path, files, tensors, scope.move(), options.signal);
}

interface OpenFile {
  readonly path: string;
  readonly handle: FileHandle;
  readonly header: Header;
}

async function openSafetensors(path: string, scope: Scope): Promise<OpenFile> {
  const { handle, size } = await openFile(path);
  scope.use({ [Symbol.asyncDispose]: () => handle.close() });
  const first = new Uint8Array(Math.min(lengthBytes, size));
  await readFully(handle, path, first, 0);
  const json = new Uint8Array(headerLength(first, path, size));
  await readFully(handle, path, json, lengthBytes);
  return { path, handle, header: parseHeader(json, path, size) };
}

/** One table of all files; the index, where there is one, must agree with it. */
function merge(files: readonly OpenFile[], { index }: Shards, path: string): Map<string, TensorInfo> {
  const tensors = new Map<string, TensorInfo>();
  for (const { path: file, header } of files) {
    for (const [name, info] of header.tensors) {
      const other = tensors.get(name);
      if (other) damaged(`${path} tensor ${name}`, 'it must stand in one file only', [other.file, file]);
      tensors.set(name, info);
    }
  }
  for (const [name, file] of index ?? []) {
    const found = tensors.get(name);
    if (found?.file !== file) {
      damaged(`${path} tensor ${name}`, `the index places it in ${file}, which must hold it`, found?.file ?? 'nothing');
    }
  }
  return tensors;
}

function checkpoint(
  path: string,
  files: readonly OpenFile[],
  tensors: ReadonlyMap<string, TensorInfo>,
  scope: Scope,
  signal: AbortSignal | undefined,
): Checkpoint {
  const handles = new Map(files.map(({ path, handle }) => [path, handle]));
  let closed = false;
  const find = (name: string): { info: TensorInfo; handle: FileHandle; where: string } => {
    if (closed) throw new DslaError('E_DISPOSED', { where: path, rule: 'the checkpoint has been closed' });
    throwIfAborted(signal, path);
    const info = tensors.get(name);
    if (!info) {
      throw new DslaError('E_CONFIG', {
        where: path,
        rule: 'the checkpoint must hold the tensor',
        got: name,
        cure: 'Check that config.json belongs to these weights.',
      });
    }
    return { info, handle: handles.get(info.file)!, where: `${info.file} tensor ${name}` };
  };
  return {
    path,
    tensors,
    metadata: Object.assign({}, ...files.map(({ header }) => header.metadata)),
    async read(name, range) {
      const { info, handle, where } = find(name);
      const { start, end } = range ?? { start: 0, end: info.bytes };
      if (!(Number.isInteger(start) && Number.isInteger(end) && 0 <= start && start <= end && end <= info.bytes)) {
        const rule = `a range must be integers 0 <= start <= end <= ${info.bytes}`;
        throw new DslaError('E_INPUT', { where, rule, got: [start, end] });
      }
      const bytes = new Uint8Array(end - start);
      await readFully(handle, info.file, bytes, info.offset + start);
      return bytes;
    },
    async readFloats(name, floats) {
      const { info, handle, where } = find(name);
      return readFloats(handle, info, where, floats, signal);
    },
    async [Symbol.asyncDispose]() {
      closed = true;
      await scope[Symbol.asyncDispose]();
    },
  };
}

function damaged(where: string, rule: string, got: unknown): never {
  throw new DslaError('E_FORMAT', { where, rule, got, cure: 'Download the checkpoint again.' });
}
