import { createRequire } from 'node:module';
import { dirname, sep } from 'node:path';
import { DslaError } from '@dsla/spec';
import * as tf from '@tensorflow/tfjs-core';
import { findAdapter, isMissing } from './dawn.js';
import { registerGradients } from './kernel-gradients.js';

/** In order of preference. */
export const engineNames = ['tfjs-node-gpu', 'tfjs-node', 'webgpu', 'wasm', 'cpu'] as const;
export type EngineName = (typeof engineNames)[number];

/** Where the tensors of a device live and its operations run. */
export interface Engine {
  readonly name: EngineName;
  /** The name under which TensorFlow.js knows it. */
  readonly backend: string;
}

const backends: Readonly<Record<EngineName, string>> = {
  'tfjs-node-gpu': 'tensorflow',
  'tfjs-node': 'tensorflow',
  webgpu: 'webgpu',
  wasm: 'wasm',
  cpu: 'cpu',
};

/** The engines to try: the one that was asked for, or all. @throws DslaError E_INPUT for an unknown name. */
export function enginesToTry(wanted: string | undefined): readonly EngineName[] {
  if (wanted === undefined) return engineNames;
  const known = engineNames.find((name) => name === wanted);
  if (known) return [known];
  throw new DslaError('E_INPUT', {
    where: 'tfjs engine',
    rule: `must be one of ${engineNames.join(', ')}`,
    got: wanted,
    cure: 'Leave it out to take the first that works.',
  });
}

/** Why an engine cannot run here, in sentences. `asked`: the user named it, so a software adapter will do. */
export async function engineObstacles(name: EngineName, asked: boolean): Promise<string[]> {
  if (name === 'wasm' || name === 'cpu') return []; // dependencies of this package
  if (name === 'webgpu') {
    const { obstacle } = await findAdapter(asked); // first: the engine looks for `navigator.gpu` once, on import
    if (obstacle !== undefined) return [`webgpu: ${obstacle}`];
  }
  const module = name === 'webgpu' ? '@tensorflow/tfjs-backend-webgpu' : `@tensorflow/${name}`;
  try {
    await load(name);
    return [];
  } catch (error) {
    if (isMissing(error)) return [`${name}: ${module} is not installed; run \`npm install ${module}\``];
    // Its installer downloads a library; without a network the package is there and the library is not.
    return [`${name}: ${module} does not load (${(error as Error).message.split('\n')[0]})`];
  }
}

/** Loads an engine and starts it. @throws DslaError E_UNAVAILABLE */
export async function openEngine(name: EngineName): Promise<Engine> {
  try {
    tf.enableProdMode(); // without its advertisement on the terminal
    await load(name);
    if (!(await tf.setBackend(backends[name]))) throw new Error(`TensorFlow.js could not start ${backends[name]}`);
    await tf.ready();
    registerGradients();
  } catch (cause) {
    throw new DslaError('E_UNAVAILABLE', {
      where: `tfjs ${name}`,
      rule: `the engine must start: ${(cause as Error).message}`,
      cure: 'Run `dsla doctor` for what it needs.',
      cause,
    });
  }
  return { name, backend: backends[name] };
}

/** TensorFlow.js has one current engine; whatever a device does begins here. */
export function use(engine: Engine): void {
  if (tf.getBackend() !== engine.backend) void tf.setBackend(engine.backend); // at once, since it has been started
}

/** One line for people. */
export function describe(engine: Engine): string {
  return `TensorFlow.js ${tf.version_core}, engine ${engine.name}, Node ${process.versions.node}, ${process.arch}`;
}

async function load(name: EngineName): Promise<void> {
  switch (name) {
    case 'wasm': {
      const { setWasmPaths } = await import('@tensorflow/tfjs-backend-wasm');
      if (tf.findBackendFactory('wasm') && tf.engine().registry.wasm) return; // started before; its path is settled
      setWasmPaths(dirname(createRequire(import.meta.url).resolve('@tensorflow/tfjs-backend-wasm')) + sep);
      return;
    }
    case 'cpu':
      await import('@tensorflow/tfjs-backend-cpu');
      return;
    case 'webgpu':
      await findAdapter(true);
      await import('@tensorflow/tfjs-backend-webgpu');
      // Else it computes on the host what two small host tensors make, however large (a mask).
      tf.env().set('WEBGPU_CPU_FORWARD', false);
      return;
    default: {
      const module = `@tensorflow/${name}`;
      await import(module);
    }
  }
}
