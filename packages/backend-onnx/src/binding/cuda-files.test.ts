import { copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cudaObstacles, cudaRequirements } from '../index.js';
import { libraryPath } from './choose.js';
import { findCuda } from './cuda-files.js';
import { folderVariable } from './cuda-requirements.js';
import { containsText, neededLibraries } from './elf.js';

describe('what an ELF file needs', () => {
  it("is read from ONNX Runtime's library and from Node itself", () => {
    expect(neededLibraries(libraryPath())).toEqual(
      expect.arrayContaining(['libstdc++.so.6', 'libm.so.6', 'libc.so.6', 'ld-linux-x86-64.so.2']),
    );
    expect(neededLibraries(process.execPath)).toContain('libc.so.6');
  });

  it('is nothing for another file', () => {
    expect(neededLibraries(new URL(import.meta.url).pathname)).toEqual([]);
  });

  it('a text is found where it crosses the pieces in which the file is read', () => {
    const folder = mkdtempSync(join(tmpdir(), 'dsla-onnx-'));
    const file = join(folder, 'f');
    writeFileSync(file, `${'x'.repeat(2 ** 22 - 3)}1.29.0${'y'.repeat(100)}`);
    expect([containsText(file, '1.29.0'), containsText(file, '1.30.0')]).toEqual([true, false]);
    rmSync(folder, { recursive: true });
  });
});

describe('the files of CUDA', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'dsla-onnx-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it('are looked for beside onnxruntime-node, or in the folder that a variable names', async () => {
    const before = process.env[folderVariable];
    try {
      process.env[folderVariable] = folder;
      expect(await cudaObstacles()).toEqual([expect.stringContaining(join(folder, 'libonnxruntime.so.1'))]);
      delete process.env[folderVariable];
      if (!existsSync(join(dirname(libraryPath()), 'libonnxruntime_providers_cuda.so')))
        expect(await cudaObstacles()).toEqual([
          expect.stringContaining('has no libonnxruntime_providers_shared.so, libonnxruntime_providers_cuda.so'),
        ]);
    } finally {
      if (before === undefined) delete process.env[folderVariable];
      else process.env[folderVariable] = before;
    }
  });

  it('must be of the version of ONNX Runtime, and linked with CUDA', async () => {
    for (const name of ['libonnxruntime.so.1', 'libonnxruntime_providers_shared.so'])
      copyFileSync(libraryPath(), join(folder, name));
    const provider = join(folder, 'libonnxruntime_providers_cuda.so');
    writeFileSync(provider, 'ONNX Runtime 1.30.0');
    expect((await findCuda(folder, '1.29.0')).obstacles).toEqual([
      expect.stringMatching(
        /libonnxruntime_providers_cuda\.so is not of ONNX Runtime 1\.29\.0\. Run onnxruntime-node's own/,
      ),
    ]);
    copyFileSync(libraryPath(), provider);
    expect((await findCuda(folder, '1.29.0')).obstacles).toEqual([
      `${provider} is not linked with libcudart, the CUDA runtime`,
    ]);
  });

  it('need libraries that the system finds; each that is missing is named, with what to do', async () => {
    const provider = join(folder, 'libonnxruntime_providers_cuda.so');
    writeFileSync(provider, elfNeeding(['libcudart.so.12', 'libcuda.so.0', 'libm.so.6']));
    expect(neededLibraries(provider)).toEqual(['libcudart.so.12', 'libcuda.so.0', 'libm.so.6']);
    const { obstacles, runtime } = await findCuda(folder, '1.29.0');
    expect(runtime).toBe('libcudart.so.12');
    expect(obstacles.slice(0, 2)).toEqual([
      expect.stringMatching(
        /^libcudart\.so\.12 does not load \(.*No such file.*\)\. Install cuda-cudart-12-0 of NVIDIA's/,
      ),
      expect.stringMatching(
        /^libcuda\.so\.0 does not load \(.*No such file.*\)\. Install NVIDIA's driver, 525 or later$/,
      ),
    ]);
    for (const cudnn of obstacles.slice(2)) expect(cudnn).toMatch(/^cuDNN .*\. Install cudnn9-cuda-12 of NVIDIA's/);
  });
});

describe('what CUDA needs', () => {
  it('is named with a version and what to install, by the version of CUDA', () => {
    expect(cudaRequirements().map(({ name }) => name)).toEqual([
      'onnxruntime-node',
      'libonnxruntime_providers_cuda.so',
      'libcuda',
      'libcudart',
      'libcublasLt',
      'libcublas',
      'libcurand',
      'libcudnn',
      'libnvrtc',
    ]);
    const [cudart, newer] = [cudaRequirements(12)[3]!, cudaRequirements(13)[3]!];
    expect([cudart.version, newer.version]).toEqual(['12', '13']);
    expect(cudart.install).toContain('nvidia-cuda-runtime-cu12');
    expect(newer.install).toContain('Install cuda-cudart-13-0');
  });
});

/** The least ELF file with such entries: header, two segments, the dynamic section, its strings and the version. */
function elfNeeding(names: readonly string[]): Buffer {
  const strings = Buffer.from(`\0${names.join('\0')}\x001.29.0\0`, 'latin1');
  const entries = [
    ...names.map((name) => [1, strings.indexOf(`${name}\0`)]),
    [5, 0x1000 + 64 + 112 + 16 * (names.length + 3)],
    [10, strings.length],
    [0, 0],
  ] as [number, number][];
  const dynamic = Buffer.alloc(16 * entries.length);
  entries.forEach(([tag, value], index) => {
    dynamic.writeBigUInt64LE(BigInt(tag), 16 * index);
    dynamic.writeBigUInt64LE(BigInt(value), 16 * index + 8);
  });
  const header = Buffer.alloc(64);
  header.writeUInt32BE(0x7f454c46);
  header.writeBigUInt64LE(64n, 32);
  header.writeUInt16LE(56, 54);
  header.writeUInt16LE(2, 56);
  const total = 64 + 112 + dynamic.length + strings.length;
  const segment = (type: number, offset: number, bytes: number): Buffer => {
    const entry = Buffer.alloc(56);
    entry.writeUInt32LE(type);
    entry.writeBigUInt64LE(BigInt(offset), 8);
    entry.writeBigUInt64LE(BigInt(0x1000 + offset), 16);
    entry.writeBigUInt64LE(BigInt(bytes), 32);
    return entry;
  };
  return Buffer.concat([header, segment(1, 0, total), segment(2, 64 + 112, dynamic.length), dynamic, strings]);
}
