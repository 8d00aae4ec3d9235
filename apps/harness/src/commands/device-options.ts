import type { OpenOptions } from '@dsla/spec';
import { type Command, Option } from 'commander';
import { deviceSetting, weightSetting } from '../backends.js';
import { whole } from '../ui/options.js';

/** Options of every command that computes: how a backend is opened. */
export interface DeviceOptions {
  readonly threads?: number;
  readonly device?: string;
  readonly precision?: 'f32' | 'f16';
  readonly weights?: 'q8' | 'q4';
}

export function addDeviceOptions(command: Command): Command {
  return command
    .option('-t, --threads <n>', 'threads of the backend', whole(1))
    .option(
      '--device <name>',
      'onnx: cpu, cuda; tfjs: its engine; webgpu: gpu, software (default: the backend decides)',
    )
    .addOption(
      new Option('--precision <type>', 'numbers to compute with (default: the backend decides)').choices([
        'f32',
        'f16',
      ]),
    )
    .addOption(new Option('--weights <type>', 'matrices in blocks of 8 or 4 bits').choices(['q8', 'q4']));
}

/** What a backend gets to open with. @throws DslaError E_INPUT for a device that it has not */
export function openOptions(
  backend: string,
  { threads, device, precision, weights }: DeviceOptions,
  signal: AbortSignal,
): OpenOptions {
  const extra = {
    ...(device !== undefined && deviceSetting(backend, device)),
    ...(weights && weightSetting(backend, weights)),
  };
  return {
    signal,
    ...(threads !== undefined && { threads }),
    ...(precision && { computeType: precision }),
    ...(Object.keys(extra).length > 0 && { extra }),
  };
}
