import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { folder } from '../test/files.js';
import { toBfloat16 } from './bfloat16.js';
import { openCheckpoint } from './checkpoint.js';
import { checkpointWriter, safetensorsWriter } from './writer.js';

const index = 'model.safetensors.index.json';

describe('safetensorsWriter', () => {
  it('writes, byte for byte, what the format says', async () => {
    await using dir = await folder();
    const path = join(dir.path, 'w.safetensors');
    await using writer = await safetensorsWriter(
      path,
      [
        { name: 'h', storage: 'f16', shape: [1] },
        { name: 's', storage: 'f32', shape: [1, 2] },
      ],
      { metadata: { format: 'dsla' } },
    );
    await writer.write('h', new Float32Array([1]));
    await writer.write('s', new Float32Array([1, -2]));
    await writer.finish();
    // Wide elements first, so that each lies at a multiple of its size.
    const json =
      '{"__metadata__":{"format":"dsla"},"s":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},' +
      '"h":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}';
    const padded = json.padEnd(Math.ceil(json.length / 8) * 8);
    const want = Buffer.concat([
      Buffer.from([padded.length, 0, 0, 0, 0, 0, 0, 0]),
      Buffer.from(padded),
      Buffer.from([0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]), // 1, -2
      Buffer.from([0, 0x3c]), // 1
    ]);
    expect(json.length % 8).not.toBe(0); // so that the padding is seen
    expect((await readFile(path)).toString('hex')).toBe(want.toString('hex'));
    expect(await readdir(dir.path)).toEqual(['w.safetensors']);
  });

  it('comes back through openCheckpoint: all storage types, in pieces, in any order', async () => {
    await using dir = await folder();
    const big = Float32Array.from({ length: 2 ** 21 + 3 }, (_, i) => i % 2048); // more than one piece; exact in f16
    await using writer = await checkpointWriter(
      dir.path,
      [
        { name: 'f32', storage: 'f32', shape: [4] },
        { name: 'bf16', storage: 'bf16', shape: [3] },
        { name: 'raw', storage: 'bf16', shape: [2] },
        { name: 'big', storage: 'f16', shape: [big.length] },
        { name: 'i32', storage: 'i32', shape: [2] },
        { name: 'u32', storage: 'u32', shape: [1] },
        { name: 'empty', storage: 'f32', shape: [0, 4] },
      ],
      { metadata: { a: 'b' } },
    );
    await writer.write('i32', Int32Array.of(-1, 2));
    await writer.write('f32', Float32Array.of(1, 2, 3));
    await writer.write('big', big);
    await writer.write('raw', toBfloat16(Float32Array.of(5, 6)));
    await writer.write('bf16', Float32Array.of(1, 1.001, -1));
    await writer.write('f32', Float32Array.of(0, 4, 0).subarray(1, 2));
    await writer.write('u32', Uint32Array.of(2 ** 32 - 1));
    await writer.finish();
    await using checkpoint = await openCheckpoint(dir.path);
    const floats = async (name: string) => (await checkpoint.readFloats(name, { as: 'f32' })).data;
    expect(checkpoint.metadata).toEqual({ a: 'b' });
    expect(await floats('f32')).toEqual(Float32Array.of(1, 2, 3, 4));
    expect(await floats('bf16')).toEqual(Float32Array.of(1, 1, -1));
    expect(await floats('raw')).toEqual(Float32Array.of(5, 6));
    expect(Buffer.compare(Buffer.from((await floats('big')).buffer), Buffer.from(big.buffer))).toBe(0);
    expect(await checkpoint.read('i32')).toEqual(new Uint8Array(Int32Array.of(-1, 2).buffer));
    expect(await checkpoint.read('u32')).toEqual(Uint8Array.of(255, 255, 255, 255));
    expect(await floats('empty')).toEqual(new Float32Array(0));
  });

  it('splits by shardBytes and writes an index', async () => {
    await using dir = await folder();
    const plan = ['b', 'a', 'huge', 'c'].map(
      (name) => ({ name, storage: 'f32', shape: [name === 'huge' ? 9 : 3] }) as const,
    );
    await using writer = await checkpointWriter(dir.path, plan, { shardBytes: 24 });
    for (const { name, shape } of plan) await writer.write(name, new Float32Array(shape[0]!).fill(name.length));
    expect((await readdir(dir.path)).every((file) => file.endsWith('.partial'))).toBe(true);
    await writer.finish();
    const files = [1, 2, 3].map((shard) => `model-0000${shard}-of-00003.safetensors`);
    expect((await readdir(dir.path)).sort()).toEqual([...files, index]);
    expect(JSON.parse(await readFile(join(dir.path, index), 'utf8'))).toEqual({
      metadata: { total_size: 72 },
      weight_map: { a: files[0], b: files[0], c: files[2], huge: files[1] },
    });
    await using checkpoint = await openCheckpoint(dir.path);
    for (const { name, shape } of plan) {
      const want = new Float32Array(shape[0]!).fill(name.length);
      expect((await checkpoint.readFloats(name, { as: 'f32' })).data).toEqual(want);
    }
  });
});

describe('a writer that fails', () => {
  const plan = [
    { name: 'a', storage: 'f16', shape: [2] },
    { name: 'b', storage: 'i32', shape: [1] },
  ] as const;

  it('refuses what was not announced, does not fit, or has another type, and leaves nothing behind', async () => {
    await using dir = await folder();
    {
      await using writer = await checkpointWriter(dir.path, plan, { shardBytes: 4 });
      await expect(writer.write('c', new Float32Array(1))).rejects.toThrow(/announced, got "c"/);
      await expect(writer.write('b', new Float32Array(1))).rejects.toThrow(
        /i32 tensor must be given a Int32Array, got "Float32Array"/,
      );
      await expect(writer.write('a', new Int32Array(2))).rejects.toThrow(/a Float32Array or Uint16Array/);
      await writer.write('a', new Float32Array(1));
      await expect(writer.write('a', new Float32Array(2))).rejects.toMatchObject({ code: 'E_INPUT' });
      await expect(writer.finish()).rejects.toMatchObject({ code: 'E_INPUT' });
    }
    expect(await readdir(dir.path)).toEqual([]);
  });

  it('names the tensors that are not full', async () => {
    await using dir = await folder();
    await using writer = await checkpointWriter(dir.path, plan);
    await writer.write('a', new Float32Array(1));
    await expect(writer.finish()).rejects.toThrow(/must be written in full, got \[a, b\]/);
  });

  it('leaves nothing behind when aborted, before or in the middle', async () => {
    await using dir = await folder();
    const signal = AbortSignal.abort();
    await expect(checkpointWriter(dir.path, plan, { signal })).rejects.toMatchObject({ code: 'E_ABORTED' });
    const controller = new AbortController();
    {
      await using writer = await checkpointWriter(dir.path, plan, { signal: controller.signal, shardBytes: 4 });
      await writer.write('a', new Float32Array(2));
      await writer.write('b', new Int32Array(1));
      controller.abort();
      await expect(writer.write('b', new Int32Array(1))).rejects.toMatchObject({ code: 'E_ABORTED' });
      await expect(writer.finish()).rejects.toMatchObject({ code: 'E_ABORTED' });
    }
    expect(await readdir(dir.path)).toEqual([]);
  });

  it('takes back published shards when a later file cannot get its name', async () => {
    await using dir = await folder();
    const second = 'model-00002-of-00002.safetensors';
    await mkdir(join(dir.path, second));
    {
      await using writer = await checkpointWriter(dir.path, plan, { shardBytes: 4 });
      await writer.write('a', new Float32Array(2));
      await writer.write('b', new Int32Array(1));
      await expect(writer.finish()).rejects.toMatchObject({ code: 'E_IO' });
    }
    expect(await readdir(dir.path)).toEqual([second]);
  });

  it('keeps an older file whole until the new one is complete', async () => {
    await using dir = await folder();
    const path = await dir.add('model.safetensors', 'old');
    {
      await using writer = await checkpointWriter(dir.path, plan);
      await writer.write('a', new Float32Array(2));
    }
    expect(await readFile(path, 'utf8')).toBe('old');
  });

  it('refuses a folder that is missing or may not be written', async () => {
    await using dir = await folder();
    await expect(checkpointWriter(join(dir.path, 'nowhere'), plan)).rejects.toMatchObject({ code: 'E_IO' });
    const root = process.geteuid?.() === 0; // for whom no permission is missing
    if (root) process.seteuid!(65534);
    try {
      await expect(checkpointWriter(root ? dir.path : '/', plan)).rejects.toMatchObject({
        code: 'E_IO',
        message: expect.stringContaining('permission'),
      });
    } finally {
      if (root) process.seteuid!(0);
    }
  });

  it('refuses names that are reserved or stand twice, and impossible shapes', async () => {
    await using dir = await folder();
    const a = { name: 'a', storage: 'f32', shape: [1] } as const;
    for (const wrong of [[a, a], [{ ...a, name: '__metadata__' }], [{ ...a, shape: [-1] }], [{ ...a, shape: [0.5] }]]) {
      await expect(checkpointWriter(dir.path, wrong)).rejects.toMatchObject({ code: 'E_INPUT' });
    }
    await expect(checkpointWriter(dir.path, [a, a], { shardBytes: 4 })).rejects.toThrow(/names must differ, got "a"/);
    expect(await readdir(dir.path)).toEqual([]);
  });
});
