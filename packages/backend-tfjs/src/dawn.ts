import { createRequire } from 'node:module';

/** WebGPU for Node: Dawn, if the package `webgpu` is there. */
interface Dawn {
  create(options: string[]): Gpu;
  readonly globals: object;
}

interface Gpu {
  requestAdapter(): Promise<Adapter | null>;
}

interface Adapter {
  readonly info?: { readonly description?: string; readonly vendor?: string; readonly isFallbackAdapter?: boolean };
}

/**
 * Puts `navigator.gpu` in place, as browsers have it, and looks for an adapter. A software adapter is an obstacle unless it
 * was `asked` for.
 */
export async function findAdapter(asked: boolean): Promise<{ readonly obstacle?: string }> {
  try {
    const { create, globals } = (await import('webgpu')) as unknown as Dawn;
    const scope = globalThis as { navigator?: { gpu?: Gpu } };
    if (!scope.navigator?.gpu) {
      Object.assign(globalThis, globals);
      const gpu = create([]);
      if (scope.navigator) Object.defineProperty(scope.navigator, 'gpu', { value: gpu, configurable: true });
      else Object.defineProperty(globalThis, 'navigator', { value: { gpu }, configurable: true });
    }
    const adapter = await scope.navigator!.gpu!.requestAdapter();
    if (!adapter)
      return { obstacle: 'Dawn finds no adapter; a GPU driver with Vulkan, Metal or Direct3D 12 is needed' };
    const { description = '', vendor = '', isFallbackAdapter = false } = adapter.info ?? {};
    if (asked || !(isFallbackAdapter || /swiftshader|llvmpipe|software/i.test(`${vendor} ${description}`))) return {};
    return {
      obstacle: `its only adapter computes on the CPU (${description}); ask for engine webgpu to use it all the same`,
    };
  } catch (error) {
    return { obstacle: `Dawn does not load (${(error as Error).message.split('\n')[0]})` };
  }
}

/** Whether a package can be found from here. */
export function installed(name: string): boolean {
  try {
    createRequire(import.meta.url).resolve(name);
    return true;
  } catch {
    return false;
  }
}
