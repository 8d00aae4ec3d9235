import type { Device } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { knownBackends, openNamed } from '../backends.js';
import { type Checkpoint, type Conversion, embedded, inspect, type Mixer, mixers } from '../checkpoint.js';
import { whole } from '../ui/options.js';

/** Options of every command that runs one model. */
export interface ModelOptions {
  readonly model: string;
  readonly backend: string;
  readonly threads?: number;
  readonly level: number;
  readonly mixer: Mixer;
  readonly conversion?: string;
}

export const defaultBackend: string = Object.keys(knownBackends)[0]!;

export function addModelOptions(command: Command): Command {
  return command
    .option('-m, --model <folder>', 'Hugging Face folder', embedded('llama-4m'))
    .option('-b, --backend <name>', `${Object.keys(knownBackends).join(', ')}, or a package`, defaultBackend)
    .option('-t, --threads <n>', 'threads of the backend', whole(1))
    .option('-l, --level <n>', 'layers to convert, in the order of order.json', whole(0), 0)
    .addOption(
      new Option('--mixer <name>', 'attention of the converted layers')
        .choices(Object.keys(mixers))
        .default('foldable'),
    )
    .option('--conversion <folder>', 'trained mixers (default: untuned)');
}

export interface Opening {
  readonly checkpoint: Checkpoint;
  readonly conversion: Conversion;
}

/** Reads the checkpoint's description; nothing is loaded yet. */
export async function inspectOptions({ model, mixer, level, conversion }: ModelOptions): Promise<Opening> {
  return { checkpoint: await inspect(model), conversion: { mixer, level, folder: conversion } };
}

export function openDevice(
  { backend, threads }: Pick<ModelOptions, 'backend' | 'threads'>,
  signal: AbortSignal,
): Promise<Device> {
  return openNamed(backend, threads, signal);
}
