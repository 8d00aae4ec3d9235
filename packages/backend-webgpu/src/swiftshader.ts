import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { brotliDecompressSync } from 'node:zlib';

// For tests only: a Vulkan driver that needs no GPU, out of the npm package @sparticuz/chromium.

/** glibc's flag: a library stays loaded when Node closes it for not being an addon. */
const RTLD_NODELETE = 0x1000;

/**
 * Makes SwiftShader the Vulkan driver of this process, before Dawn is loaded: the loader libvulkan.so.1 is opened by path, so
 * that Dawn's own dlopen finds it by name and LD_LIBRARY_PATH is not needed. Returns why that is not possible, or undefined.
 */
export function useSwiftShader(): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    return `no SwiftShader for ${process.platform} ${process.arch}`;
  try {
    const folder = unpacked();
    process.env.VK_DRIVER_FILES = join(folder, 'vk_swiftshader_icd.json');
    loadLibrary(join(folder, 'libvulkan.so.1'));
    return undefined;
  } catch (error) {
    return `SwiftShader cannot be unpacked: ${error instanceof Error ? error.message : error}`;
  }
}

function loadLibrary(path: string): void {
  try {
    process.dlopen({ exports: {} }, path, constants.dlopen.RTLD_NOW | RTLD_NODELETE);
  } catch (error) {
    // Node loads it and then finds that it is no addon.
    if (!(error instanceof Error && error.message.includes('did not self-register'))) throw error;
  }
}

/** The folder of the driver's files, written at the first call. */
function unpacked(): string {
  const require = createRequire(import.meta.url);
  const root = dirname(dirname(require.resolve('@sparticuz/chromium')));
  const { version } = JSON.parse(readFileSync(packageFile(root), 'utf8')) as { version: string };
  const cache = join(import.meta.dirname, '..', 'node_modules', '.cache');
  const folder = join(cache, `swiftshader-${version}`);
  if (existsSync(folder)) return folder;
  const draft = `${folder}.${process.pid}`;
  mkdirSync(draft, { recursive: true });
  const archive = join(dirname(packageFile(root)), 'bin', 'swiftshader.tar.br');
  for (const { name, content } of untar(brotliDecompressSync(readFileSync(archive))))
    if (/vulkan|vk_swiftshader/.test(name)) writeFileSync(join(draft, name), content);
  try {
    renameSync(draft, folder);
  } catch (error) {
    if (!existsSync(folder)) throw error; // another process was first
  }
  return folder;
}

function packageFile(folder: string): string {
  const file = join(folder, 'package.json');
  return existsSync(file) || dirname(folder) === folder ? file : packageFile(dirname(folder));
}

/** Files of a tar archive: a header of 512 bytes (name at 0, octal size at 124), then content padded to 512. */
function* untar(archive: Buffer): Generator<{ name: string; content: Buffer }> {
  const text = (from: number, to: number) => archive.toString('latin1', from, to).split('\0')[0]!;
  for (let at = 0; at + 512 <= archive.length && archive[at] !== 0; ) {
    const size = Number.parseInt(text(at + 124, at + 136), 8);
    yield { name: text(at, at + 100), content: archive.subarray(at + 512, at + 512 + size) };
    at += 512 * (1 + Math.ceil(size / 512));
  }
}
