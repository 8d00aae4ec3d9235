import { prelude } from './prelude.js';

// NVRTC, NVIDIA's compiler for CUDA C as a library.

/** Turns CUDA C into machine code. */
export interface Compiler {
  /** `architecture`: sm_90a. @throws Error with the compiler's words */
  compile(name: string, source: string, architecture: string): Promise<Uint8Array>;
}

const P = 'void *';
const S = 'const char *';

/** The library's name for a CUDA version; cuDNN wants it too. */
export function compilerLibrary(major: number): string {
  return `libnvrtc.so.${major}`;
}

/** @throws Error of the loader where the library is not found. */
export async function openCompiler(path: string): Promise<Compiler> {
  const { default: koffi } = await import('koffi');
  const library = koffi.load(path);
  const textOf = library.func('nvrtcGetErrorString', S, ['int']);
  const compile = library.func('nvrtcCompileProgram', 'int', [P, 'int', 'const char **']);
  const functions = {
    nvrtcCreateProgram: library.func('nvrtcCreateProgram', 'int', [P, S, S, 'int', P, P]),
    nvrtcGetProgramLogSize: library.func('nvrtcGetProgramLogSize', 'int', [P, P]),
    nvrtcGetProgramLog: library.func('nvrtcGetProgramLog', 'int', [P, P]),
    nvrtcGetCUBINSize: library.func('nvrtcGetCUBINSize', 'int', [P, P]),
    nvrtcGetCUBIN: library.func('nvrtcGetCUBIN', 'int', [P, P]),
    nvrtcDestroyProgram: library.func('nvrtcDestroyProgram', 'int', [P]),
  };
  const call = (name: keyof typeof functions, ...args: unknown[]): void => {
    const status: number = functions[name](...args);
    if (status !== 0) throw new Error(`${name}: ${textOf(status)}`);
  };
  /** What one function says the length of and another gives. */
  const bytesOf = (what: 'ProgramLog' | 'CUBIN', program: bigint): Uint8Array => {
    const size = new BigUint64Array(1);
    call(`nvrtcGet${what}Size`, program, size);
    const bytes = new Uint8Array(Number(size[0]));
    call(`nvrtcGet${what}`, program, bytes);
    return bytes;
  };
  /** Not on the calling thread: it takes some tenths of a second. */
  const compiled = (program: bigint, options: readonly string[]): Promise<number> =>
    new Promise((resolve, reject) => {
      compile.async(program, options.length, options, (error: unknown, status: number) =>
        error ? reject(error) : resolve(status),
      );
    });
  return {
    async compile(name, source, architecture) {
      const made = new BigUint64Array(1);
      call('nvrtcCreateProgram', made, prelude + source, `${name}.cu`, 0, null, null);
      const program = made[0]!;
      try {
        const status = await compiled(program, [`--gpu-architecture=${architecture}`, '--std=c++17']);
        if (status === 0) return bytesOf('CUBIN', program);
        const log = Buffer.from(bytesOf('ProgramLog', program)).toString('latin1').replace(/\0.*/s, '').trim();
        throw new Error(`${name} does not compile: ${log || textOf(status)}`);
      } finally {
        call('nvrtcDestroyProgram', made);
      }
    },
  };
}
