import { chmod, mkdir, readdir, readlink, rename, symlink, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { fromFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { entry, type Folder, file, folder } from '../test/files.js';
import { toBfloat16 } from './bfloat16.js';
import { openCheckpoint } from './checkpoint.js';

const single = 'model.safetensors';
const index = 'model.safetensors.index.json';

function bytesOf(...values: number[]): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}

function halves(...bits: number[]): Uint8Array {
  return new Uint8Array(Uint16Array.from(bits).buffer);
}

/** One f32 tensor. */
function one(name: string, ...values: number[]): Uint8Array {
  return file({ [name]: entry('F32', [values.length], 0, 4 * values.length) }, bytesOf(...values));
}

async function sharded(): Promise<Folder> {
  const dir = await folder();
  await dir.add('a.safetensors', one('first', 1, 2));
  await dir.add('b.safetensors', one('second', 3));
  await dir.add(index, { weight_map: { first: 'a.safetensors', second: 'b.safetensors' } });
  return dir;
}

describe('openCheckpoint', () => {
  it('reads one file, as a folder and by its path', async () => {
    await using dir = await folder();
    const path = await dir.add(single, one('w', 1, -2, 3));
    for (const place of [dir.path, path]) {
      await using checkpoint = await openCheckpoint(place);
      expect([...checkpoint.tensors.keys()]).toEqual(['w']);
      expect(await checkpoint.readFloats('w', { as: 'f32' })).toEqual({
        dtype: 'f32',
        shape: [3],
        data: new Float32Array([1, -2, 3]),
      });
      expect(await checkpoint.read('w', { start: 4, end: 8 })).toEqual(bytesOf(-2));
      expect(await checkpoint.read('w')).toEqual(bytesOf(1, -2, 3));
    }
  });

  it('reads shards, also in folders below and through the links of a hub cache', async () => {
    await using dir = await sharded();
    await mkdir(join(dir.path, 'snapshots', 'abc', 'sub'), { recursive: true });
    await mkdir(join(dir.path, 'blobs'));
    await rename(join(dir.path, 'a.safetensors'), join(dir.path, 'blobs', 'a1'));
    await symlink('../../../blobs/a1', join(dir.path, 'snapshots', 'abc', 'sub', 'a.safetensors'));
    await rename(join(dir.path, 'b.safetensors'), join(dir.path, 'snapshots', 'abc', 'b.safetensors'));
    await dir.add(`snapshots/abc/${index}`, { weight_map: { first: 'sub/a.safetensors', second: 'b.safetensors' } });
    await using checkpoint = await openCheckpoint(join(dir.path, 'snapshots', 'abc'));
    expect((await checkpoint.readFloats('first', { as: 'f32' })).data).toEqual(new Float32Array([1, 2]));
    expect((await checkpoint.readFloats('second', { as: 'f32' })).data).toEqual(new Float32Array([3]));
  });

  it('converts f32, f16 and bf16 to f32 and f16', async () => {
    await using dir = await folder();
    const values = [1, -0.333251953125, 2 ** -24, 65504];
    const bits = [0x3c00, 0xb555, 0x0001, 0x7bff];
    const bf = toBfloat16(Float32Array.from([1, -0.5, 2 ** -24, 2 ** 15]));
    const header = { s: entry('F32', [4], 0, 16), h: entry('F16', [4], 16, 24), b: entry('BF16', [4], 24, 32) };
    await dir.add(single, file(header, Buffer.concat([bytesOf(...values), halves(...bits), halves(...bf)])));
    await using checkpoint = await openCheckpoint(dir.path);
    const read = async (name: string, as: 'f32' | 'f16') => (await checkpoint.readFloats(name, { as })).data;
    for (const name of ['s', 'h']) {
      expect(await read(name, 'f32')).toEqual(Float32Array.from(values));
      expect(await read(name, 'f16')).toEqual(Uint16Array.from(bits));
    }
    expect(await read('b', 'f32')).toEqual(Float32Array.from([1, -0.5, 2 ** -24, 2 ** 15]));
    expect(await read('b', 'f16')).toEqual(Uint16Array.from([0x3c00, 0xb800, 0x0001, 0x7800]));
  });

  it('selects an element of the first axis, and rows', async () => {
    await using dir = await folder();
    const values = Array.from({ length: 24 }, (_, i) => i); // [2, 4, 3]
    await dir.add(single, file({ w: entry('F32', [2, 4, 3], 0, 96) }, bytesOf(...values)));
    await using checkpoint = await openCheckpoint(dir.path);
    const read = (options: object) => checkpoint.readFloats('w', { as: 'f32', ...options });
    expect(await read({ index: 1 })).toMatchObject({ shape: [4, 3], data: Float32Array.from(values.slice(12)) });
    expect(await read({ rows: { start: 1, step: 2 } })).toMatchObject({
      shape: [1, 4, 3],
      data: Float32Array.from(values.slice(12)),
    });
    expect(await read({ index: 1, rows: { start: 1, step: 2 } })).toMatchObject({
      shape: [2, 3],
      data: Float32Array.from([15, 16, 17, 21, 22, 23]),
    });
    expect(await read({ index: 0, rows: { start: 0, step: 3 } })).toMatchObject({
      shape: [2, 3],
      data: Float32Array.from([0, 1, 2, 9, 10, 11]),
    });
    for (const options of [
      { index: 2 },
      { index: -1 },
      { rows: { start: 2, step: 1 } },
      { rows: { start: 0, step: 0 } },
    ]) {
      await expect(read(options)).rejects.toMatchObject({ code: 'E_INPUT' });
    }
  });

  it('reads tensors and rows beyond the size of its buffer', async () => {
    await using dir = await folder();
    const [rows, width] = [3, 2 ** 22 + 5]; // a row of 8 MB and a little, in bf16
    const bits = Uint16Array.from({ length: rows * width }, (_, i) => (i * 7) % 0x7f80);
    await dir.add(single, file({ w: entry('BF16', [rows, width], 0, bits.byteLength) }, new Uint8Array(bits.buffer)));
    await using checkpoint = await openCheckpoint(dir.path);
    const back = toBfloat16((await checkpoint.readFloats('w', { as: 'f32' })).data as Float32Array);
    expect(Buffer.compare(Buffer.from(back.buffer), Buffer.from(bits.buffer))).toBe(0);
    const odd = toBfloat16(
      (await checkpoint.readFloats('w', { as: 'f32', rows: { start: 0, step: 2 } })).data as Float32Array,
    );
    const want = Buffer.concat(
      [bits.subarray(0, width), bits.subarray(2 * width)].map((part) => new Uint8Array(part.slice().buffer)),
    );
    expect(Buffer.compare(Buffer.from(odd.buffer), want)).toBe(0);
  });

  it.each([
    ['f32', 'F32', bytesOf(1, Number.NaN), 'f32', 'NaN'],
    ['f32', 'F32', bytesOf(1, Number.NEGATIVE_INFINITY), 'f16', '-Infinity'],
    ['f16', 'F16', halves(0x3c00, 0x7c00), 'f16', 'Infinity'],
    ['f16', 'F16', halves(0x3c00, 0xfe00), 'f32', 'NaN'],
    ['bf16', 'BF16', halves(0x3f80, 0x7fc0), 'f32', 'NaN'],
    ['f32 beyond float16', 'F32', bytesOf(1, 1e6), 'f16', 'Infinity'],
  ] as const)(
    'refuses %s that is not finite, naming tensor and element (%s %s as %s)',
    async (_, dtype, data, as, got) => {
      await using dir = await folder();
      await dir.add(single, file({ w: entry(dtype, [2], 0, data.length) }, data));
      await using checkpoint = await openCheckpoint(dir.path);
      await expect(checkpoint.readFloats('w', { as })).rejects.toMatchObject({
        code: 'E_FORMAT',
        message: expect.stringMatching(new RegExp(`tensor w element 1: weights must be finite.*got ${got}\\.`)),
        details: { index: 1 },
      });
      const { data: kept } = await checkpoint.readFloats('w', { as, finite: false });
      const second = kept instanceof Float32Array ? kept[1] : fromFloat16(kept as Uint16Array)[1];
      expect(String(second)).toBe(got);
    },
  );

  it('refuses integers as floats, unknown tensors, bad ranges and a closed checkpoint', async () => {
    await using dir = await folder();
    await dir.add(single, file({ w: entry('I32', [2], 0, 8) }, 8));
    const checkpoint = await openCheckpoint(dir.path);
    await expect(checkpoint.readFloats('w', { as: 'f32' })).rejects.toMatchObject({ code: 'E_UNSUPPORTED' });
    await expect(checkpoint.read('v')).rejects.toThrow(/must hold the tensor, got "v"/);
    for (const [start, end] of [
      [-1, 4],
      [4, 2],
      [0, 9],
      [0.5, 4],
    ] as const) {
      await expect(checkpoint.read('w', { start, end })).rejects.toMatchObject({ code: 'E_INPUT' });
    }
    await checkpoint[Symbol.asyncDispose]();
    await expect(checkpoint.read('w')).rejects.toMatchObject({ code: 'E_DISPOSED' });
  });

  it.runIf(process.platform === 'linux')('closes every file, also when opening fails', async () => {
    await using dir = await sharded();
    const opened = async () =>
      (
        await Promise.all((await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')))
      ).filter((file) => file.startsWith(dir.path)).length;
    const checkpoint = await openCheckpoint(dir.path);
    expect(await opened()).toBe(2);
    await checkpoint[Symbol.asyncDispose]();
    expect(await opened()).toBe(0);
    await dir.add('b.safetensors', 'damaged');
    await expect(openCheckpoint(dir.path)).rejects.toMatchObject({ code: 'E_FORMAT' });
    expect(await opened()).toBe(0);
  });

  it('notices a file that is cut off while it is open', async () => {
    await using dir = await folder();
    const path = await dir.add(single, one('w', 1, 2, 3));
    await using checkpoint = await openCheckpoint(dir.path);
    await truncate(path, 60);
    await expect(checkpoint.readFloats('w', { as: 'f32' })).rejects.toMatchObject({
      code: 'E_FORMAT',
      message: expect.stringContaining('cut off'),
    });
  });

  it('stops at a signal, when opening and later', async () => {
    await using dir = await folder();
    await dir.add(single, one('w', 1));
    await expect(openCheckpoint(dir.path, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'E_ABORTED',
    });
    const controller = new AbortController();
    await using checkpoint = await openCheckpoint(dir.path, { signal: controller.signal });
    controller.abort();
    await expect(checkpoint.readFloats('w', { as: 'f32' })).rejects.toMatchObject({ code: 'E_ABORTED' });
  });
});

describe('a folder that is not a checkpoint', () => {
  const refuses = (path: string, code: string, message: RegExp) =>
    expect(openCheckpoint(path)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });

  it('does not exist, is empty, or holds a folder in place of a file', async () => {
    await using dir = await folder();
    await refuses(join(dir.path, 'nowhere'), 'E_IO', /no such file.*Check the path/);
    await refuses(dir.path, 'E_IO', /must hold model\.safetensors or model\.safetensors\.index\.json, got "neither"/);
    await mkdir(join(dir.path, single));
    await refuses(dir.path, 'E_IO', /must be a file/);
  });

  it.runIf(process.geteuid)('may not be read', async () => {
    await using dir = await folder();
    const path = await dir.add(single, one('w', 1));
    await chmod(dir.path, 0o755);
    await chmod(path, 0);
    const root = process.geteuid!() === 0; // for whom no permission is missing
    if (root) process.seteuid!(65534);
    try {
      await refuses(dir.path, 'E_IO', /permission denied.*Give this user permission/);
    } finally {
      if (root) process.seteuid!(0);
    }
  });

  const bad: [string, (dir: Folder) => Promise<unknown>, string, RegExp][] = [
    ['an index that is not JSON', (dir) => dir.add(index, '{"weight_map":'), 'E_FORMAT', /it must be JSON/],
    ['an index without weight_map', (dir) => dir.add(index, '{}'), 'E_FORMAT', /weight_map must map/],
    [
      'a weight_map with a number',
      (dir) => dir.add(index, { weight_map: { a: 1 } }),
      'E_FORMAT',
      /weight_map must map/,
    ],
    [
      'an index that names a tensor twice',
      (dir) => dir.add(index, '{"weight_map":{"first":"a.safetensors","first":"b.safetensors"}}'),
      'E_FORMAT',
      /no name may stand twice, got "first"/,
    ],
    [
      'an index that names a missing file',
      (dir) => dir.add(index, { weight_map: { first: 'c.safetensors' } }),
      'E_IO',
      /names a file that is missing, got "c\.safetensors"/,
    ],
    [
      'an index that climbs out of the folder',
      (dir) => dir.add(index, { weight_map: { first: '../a.safetensors' } }),
      'E_FORMAT',
      /must lie inside the folder, got "\.\.\/a\.safetensors"/,
    ],
    [
      'an index that climbs out in the middle',
      (dir) => dir.add(index, { weight_map: { first: 'x/../../a.safetensors' } }),
      'E_FORMAT',
      /must lie inside the folder/,
    ],
    [
      'an absolute path in the index',
      (dir) => dir.add(index, { weight_map: { first: join(dir.path, 'a.safetensors') } }),
      'E_FORMAT',
      /must lie inside the folder/,
    ],
    [
      'the folder itself in the index',
      (dir) => dir.add(index, { weight_map: { first: '.' } }),
      'E_FORMAT',
      /must lie inside the folder/,
    ],
    [
      'a tensor that its shard lacks',
      (dir) => dir.add(index, { weight_map: { first: 'b.safetensors' } }),
      'E_FORMAT',
      /tensor first: the index places it in .*b\.safetensors, which must hold it, got "nothing"/,
    ],
    [
      'a tensor in two shards',
      (dir) => dir.add('b.safetensors', one('first', 3)),
      'E_FORMAT',
      /tensor first: it must stand in one file only/,
    ],
    ['a shard that is damaged', (dir) => dir.add('b.safetensors', new Uint8Array(3)), 'E_FORMAT', /b\.safetensors: /],
  ];

  it.each(bad)('has %s', async (_, spoil, code, message) => {
    await using dir = await sharded();
    await (await openCheckpoint(dir.path))[Symbol.asyncDispose](); // it is good before
    await spoil(dir);
    await refuses(dir.path, code, message);
  });

  it('has a link that leads out of it', async () => {
    await using outside = await folder();
    await using dir = await sharded();
    await outside.add('secret.safetensors', one('first', 1));
    await symlink(join(outside.path, 'secret.safetensors'), join(dir.path, 'link.safetensors'));
    await dir.add(index, { weight_map: { first: 'link.safetensors' } });
    await refuses(dir.path, 'E_FORMAT', /links must not lead out of the folder, got "link\.safetensors -> /);
  });
});
