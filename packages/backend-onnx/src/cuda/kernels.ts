import { compilerLibrary, openCompiler } from './compile.js';
import type { Launch, Operator } from './operator.js';

/** One that is on the device: its launches know their CUfunctions. */
export interface LoadedOperator extends Operator {
  readonly launches: readonly (Launch & { readonly function: bigint })[];
}

/** Compiles operators for the device of this process and loads them there, each once, for good. */
export interface Kernels {
  /** @throws Error with what the compiler or the driver says */
  load(operator: Operator): Promise<LoadedOperator>;
  /** Runs one outside of any graph, on the default stream. `pointers`: to inputs, then outputs; `named`: sizes, in order. */
  run(operator: LoadedOperator, pointers: readonly bigint[], named: ReadonlyMap<string, number>): void;
}

type Launcher = (operator: LoadedOperator) => (pointers: readonly bigint[], named: ReadonlyMap<string, number>) => void;

const P = 'void *';
const dynamicShared = 8; // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
/** Of a block that has not asked for more. */
const commonShared = 48 * 1024;

let opened: Promise<Kernels> | undefined;

/**
 * One a process. `major`: of CUDA; `capability`: of the device, [9, 0]. The device's context must be current.
 * @throws Error of the loader where NVRTC is not found
 */
export function openKernels(major: number, capability: readonly [number, number]): Promise<Kernels> {
  opened ??= open(major, capability);
  return opened;
}

async function open(major: number, [first, second]: readonly [number, number]): Promise<Kernels> {
  const compiler = await openCompiler(compilerLibrary(major));
  const { default: koffi } = await import('koffi');
  const driver = koffi.load('libcuda.so.1');
  const loadModule = driver.func('cuModuleLoadData', 'int', [P, P]);
  const getFunction = driver.func('cuModuleGetFunction', 'int', [P, P, 'const char *']);
  const setAttribute = driver.func('cuFuncSetAttribute', 'int', [P, 'int', 'int']);
  const checked = (name: string, status: number): void => {
    if (status !== 0) throw new Error(`${name}: CUDA driver error ${status}`);
  };
  const architecture = `sm_${first}${second}${first >= 9 ? 'a' : ''}`;
  const load = async (operator: Operator): Promise<LoadedOperator> => {
    const { name, source } = operator;
    const code = await compiler.compile(name, source, architecture);
    const module = new BigUint64Array(1);
    checked('cuModuleLoadData', loadModule(module, code));
    const launches = operator.launches.map((launch) => {
      const { kernel, shared = 0 } = launch;
      const found = new BigUint64Array(1);
      checked(`cuModuleGetFunction ${kernel}`, getFunction(found, module[0], kernel));
      if (shared > commonShared)
        checked(`${kernel} with ${shared} bytes of shared memory`, setAttribute(found[0], dynamicShared, shared));
      return { ...launch, function: found[0]! };
    });
    return { ...operator, launches };
  };
  const loaded = new Map<string, Promise<LoadedOperator>>();
  const launch = driver.func('cuLaunchKernelEx', 'int', [P, P, P, P]);
  // @ts-expect-error: plain JavaScript, which the computing thread reads as it is
  const { launcherOn } = await import('../operators.js');
  const launcher: Launcher = launcherOn(koffi, launch, null);
  return {
    run: (operator, pointers, named) => launcher(operator)(pointers, named),
    load(operator) {
      const known = loaded.get(operator.name) ?? load(operator);
      loaded.set(operator.name, known);
      return known;
    },
  };
}
