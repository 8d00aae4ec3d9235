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
  if (process.platform === 'linux' && !loads('libvulkan.so.1'))
    return { obstacle: 'Dawn needs the Vulkan loader libvulkan.so.1 (libvulkan1) and a driver; it does not load' };
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
    if (isMissing(error)) return { obstacle: 'the package webgpu is not installed; run `npm install webgpu@0.6.2`' };
    return { obstacle: `Dawn does not load (${(error as Error).message.split('\n')[0]})` };
  }
}

/** Whether the system has a library. Asked before Dawn is, which prints its own complaint past `process.stderr`. */
function loads(library: string): boolean {
  try {
    process.dlopen({ exports: {} }, library);
  } catch (error) {
    return /self-register/.test((error as Error).message); // loaded, and no addon
  }
  return true;
}

/** Whether an import failed because the package is not there; bundlers put a stub that says so in the place of an optional one. */
export function isMissing(error: unknown): boolean {
  const { code, message } = error as NodeJS.ErrnoException;
  return code === 'ERR_MODULE_NOT_FOUND' || message.startsWith('Could not resolve');
}
