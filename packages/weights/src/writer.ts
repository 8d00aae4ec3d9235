import { open, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DslaError, Scope, throwIfAborted } from '@dsla/spec';
import { io } from './io.js';
import { planBytes, type TensorPlan } from './layout.js';
import { openPart, type Part, type Values } from './part.js';
import { indexName, singleName } from './shards.js';

/**
 * Writes tensors that were announced when it was made. Nothing stands under a final name before `finish`; a writer that is
 * disposed without it, after an error or an abort, leaves nothing behind.
 */
export interface SafetensorsWriter extends AsyncDisposable {
  /**
   * Appends elements to a tensor, whole or in pieces; tensors may come in any order.
   * @throws DslaError E_INPUT, E_IO, E_ABORTED
   */
  write(name: string, values: Values): Promise<void>;
  /** Brings the files to the disk, then gives them their names. @throws DslaError E_INPUT when a tensor is not full, E_IO */
  finish(): Promise<void>;
}

export interface WriterOptions {
  readonly metadata?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

/** One safetensors file. @throws DslaError E_INPUT, E_IO, E_ABORTED */
export async function safetensorsWriter(
  path: string,
  tensors: readonly TensorPlan[],
  { metadata = {}, signal }: WriterOptions = {},
): Promise<SafetensorsWriter> {
  return writer([{ path, tensors }], metadata, signal);
}

export interface CheckpointWriterOptions extends WriterOptions {
  /** Data bytes a shard, 5 GB; a larger tensor gets a shard of its own. */
  readonly shardBytes?: number;
}

/**
 * A checkpoint in an existing folder: `model.safetensors`, or shards and their index where the tensors exceed `shardBytes`.
 * @throws DslaError E_INPUT, E_IO, E_ABORTED
 */
export async function checkpointWriter(
  folder: string,
  tensors: readonly TensorPlan[],
  { metadata = {}, signal, shardBytes = 5e9 }: CheckpointWriterOptions = {},
): Promise<SafetensorsWriter> {
  const shards = split(tensors, shardBytes);
  if (shards.length <= 1) return writer([{ path: join(folder, singleName), tensors }], metadata, signal);
  const five = (count: number) => String(count).padStart(5, '0');
  const named = shards.map((shard, index) => ({
    file: `model-${five(index + 1)}-of-${five(shards.length)}.safetensors`,
    tensors: shard,
  }));
  const total = tensors.reduce((sum, plan) => sum + planBytes(plan), 0);
  const map = named.flatMap((shard) => shard.tensors.map(({ name }) => [name, shard.file]));
  const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(map.sort()) };
  return writer(
    named.map((shard) => ({ path: join(folder, shard.file), tensors: shard.tensors })),
    metadata,
    signal,
    { path: join(folder, indexName), text: `${JSON.stringify(index, null, 2)}\n` },
  );
}

interface PlannedFile {
  readonly path: string;
  readonly tensors: readonly TensorPlan[];
}

async function writer(
  files: readonly PlannedFile[],
  metadata: Readonly<Record<string, string>>,
  signal: AbortSignal | undefined,
  index?: { readonly path: string; readonly text: string },
): Promise<SafetensorsWriter> {
  await using opening = new Scope();
  const parts: Part[] = [];
  const owners = new Map<string, Part>();
  for (const { path, tensors } of files) {
    throwIfAborted(signal, path);
    const part = opening.use(await openPart(path, tensors, metadata));
    parts.push(part);
    for (const { name } of tensors) {
      if (owners.has(name))
        throw new DslaError('E_INPUT', { where: path, rule: 'tensor names must differ', got: name });
      owners.set(name, part);
    }
  }
  const scope = opening.move();
  const first = files[0]!.path;
  const published: string[] = [];
  let finished = false;
  return {
    async write(name, values) {
      throwIfAborted(signal, first);
      const part = owners.get(name);
      if (!part) throw new DslaError('E_INPUT', { where: first, rule: 'a tensor must have been announced', got: name });
      await part.write(name, values);
    },
    async finish() {
      throwIfAborted(signal, first);
      for (const part of parts) await part.complete();
      for (const part of parts) {
        await part.publish();
        published.push(part.path);
      }
      if (index) await writeText(index.path, index.text);
      await syncFolder(dirname(first));
      finished = true;
    },
    async [Symbol.asyncDispose]() {
      await scope[Symbol.asyncDispose]();
      if (!finished) for (const path of published) await rm(path, { force: true });
    },
  };
}

/** Tensors in order, as many a shard as fit. */
function split(tensors: readonly TensorPlan[], shardBytes: number): TensorPlan[][] {
  const shards: TensorPlan[][] = [];
  let room = 0;
  for (const plan of tensors) {
    const bytes = planBytes(plan);
    if (shards.length === 0 || bytes > room) {
      shards.push([]);
      room = shardBytes;
    }
    shards.at(-1)!.push(plan);
    room -= bytes;
  }
  return shards;
}

/** Whole or not at all. */
async function writeText(path: string, text: string): Promise<void> {
  const temporary = `${path}.${process.pid}.partial`;
  await io(path, async () => {
    try {
      await writeFile(temporary, text, { flush: true });
      await rename(temporary, path);
    } finally {
      await rm(temporary, { force: true });
    }
  });
}

/** Makes renames survive a power cut; Windows cannot and need not. */
async function syncFolder(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  await io(path, async () => {
    const handle = await open(path, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  });
}
