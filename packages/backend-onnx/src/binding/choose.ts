import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import type { OpenOptions } from '@dsla/spec';
import type { Binding, BindingOptions } from './binding.js';
import { openCApi } from './c-api.js';
import type { CudaOptions } from './cuda.js';
import { findCuda, mainLibrary } from './cuda-files.js';
import { folderVariable } from './cuda-requirements.js';
import { openNode } from './node.js';

/** How to open what was asked for, or why it cannot be opened. */
export interface Choice {
  readonly obstacles: readonly string[];
  readonly open?: () => Promise<Binding>;
}

/** Of ONNX Runtime. */
export const version = '1.29.0';

export async function choose(options: OpenOptions = {}): Promise<Choice> {
  const general = generalObstacles(options);
  if (general.length > 0) return { obstacles: general };
  const weights = options.extra?.weights;
  const settings: BindingOptions = {
    ...(weights === 'q8' || weights === 'q4' ? { weights } : {}),
    threads: options.threads ?? availableParallelism(),
    packs: options.extra?.prepack !== 'off',
    ...(options.extra?.profile === undefined ? {} : { profile: options.extra.profile }),
  };
  if (options.extra?.device === 'cuda') return await chooseCuda(options, settings);
  const wanted = options.extra?.binding;
  if (wanted === 'node') return { obstacles: [], open: () => openNode(version, settings) };
  const path = libraryPath();
  const obstacles = await cApiObstacles(path);
  if (obstacles.length === 0) return { obstacles, open: () => openCApi(path, settings) };
  return wanted === 'c-api' ? { obstacles } : { obstacles: [], open: () => openNode(version, settings) };
}

async function chooseCuda({ computeType, extra = {} }: OpenOptions, settings: BindingOptions): Promise<Choice> {
  const folder = process.env[folderVariable] ?? dirname(libraryPath());
  const path = join(folder, mainLibrary);
  const obstacles = await cApiObstacles(path);
  if (obstacles.length > 0) return { obstacles };
  const found = await findCuda(folder, version);
  if (found.obstacles.length > 0) return { obstacles: found.obstacles };
  const onDevice: CudaOptions = {
    runtime: found.runtime,
    compute: computeType === 'f32' ? 'float' : 'float16',
    operators: extra.operators !== 'off',
  };
  return { obstacles: [], open: () => openCApi(path, settings, onDevice) };
}

function generalObstacles({ computeType, threads, extra = {} }: OpenOptions): string[] {
  const obstacles: string[] = [];
  const onCpu = extra.device === undefined || extra.device === 'cpu';
  if (!onCpu && extra.device !== 'cuda') obstacles.push(`extra.device must be cpu or cuda, not ${extra.device}`);
  if (onCpu && computeType === 'f16')
    obstacles.push('on the CPU it computes in float32; leave computeType out or ask for f32');
  if (!onCpu && extra.binding === 'node') obstacles.push('extra.binding must be c-api on cuda, not node');
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1))
    obstacles.push(`threads must be an integer of at least 1, not ${threads}`);
  if (extra.binding !== undefined && extra.binding !== 'c-api' && extra.binding !== 'node')
    obstacles.push(`extra.binding must be c-api or node, not ${extra.binding}`);
  if (extra.prepack !== undefined && extra.prepack !== 'on' && extra.prepack !== 'off')
    obstacles.push(`extra.prepack must be on or off, not ${extra.prepack}`);
  if (extra.operators !== undefined && extra.operators !== 'on' && extra.operators !== 'off')
    obstacles.push(`extra.operators must be on or off, not ${extra.operators}`);
  const computed = computeType ?? (onCpu ? 'f32' : 'f16');
  if (extra.weights !== undefined && ![computed, 'q8', 'q4'].includes(extra.weights))
    obstacles.push(`extra.weights must be ${computed}, q8 or q4, not ${extra.weights}`);
  const installed = installedVersion();
  if (installed === undefined) obstacles.push(`onnxruntime-node is not installed; add onnxruntime-node ${version}`);
  else if (installed !== version)
    obstacles.push(`onnxruntime-node ${version} is needed, ${installed} is installed; install that version`);
  return obstacles;
}

function installedVersion(): string | undefined {
  try {
    return createRequire(import.meta.url)('onnxruntime-node/package.json').version;
  } catch {
    return undefined;
  }
}

/** ONNX Runtime's library in the package onnxruntime-node. */
export function libraryPath(): string {
  const entry = createRequire(import.meta.url).resolve('onnxruntime-node');
  return join(dirname(entry), '../bin/napi-v6', process.platform, process.arch, 'libonnxruntime.so.1');
}

async function cApiObstacles(path: string): Promise<string[]> {
  if (process.platform !== 'linux') return [`the C API is reached on Linux only, not on ${process.platform}`];
  if (!existsSync(path)) return [`there is no library of ONNX Runtime for ${process.arch}: ${path} is missing`];
  try {
    await import('koffi');
    return [];
  } catch (error) {
    return [`koffi does not load: ${(error as Error).message}`];
  }
}
