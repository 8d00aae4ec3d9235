import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A safetensors file put together by hand; `header` as given when it is a string or bytes. */
export function file(header: object | string | Uint8Array, data: Uint8Array | number = 0): Uint8Array {
  const json =
    header instanceof Uint8Array
      ? header
      : new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const rest = typeof data === 'number' ? new Uint8Array(data) : data;
  const bytes = new Uint8Array(8 + json.length + rest.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(rest, 8 + json.length);
  return bytes;
}

/** Entry of a header. */
export function entry(dtype: string, shape: unknown, begin: unknown, end: unknown): object {
  return { dtype, shape, data_offsets: [begin, end] };
}

export interface Folder extends AsyncDisposable {
  readonly path: string;
  add(name: string, content: Uint8Array | string | object): Promise<string>;
}

/** A temporary folder that removes itself. */
export async function folder(): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), 'dsla-weights-'));
  return {
    path,
    async add(name, content) {
      const raw = content instanceof Uint8Array || typeof content === 'string';
      await writeFile(join(path, name), raw ? content : JSON.stringify(content));
      return join(path, name);
    },
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}
