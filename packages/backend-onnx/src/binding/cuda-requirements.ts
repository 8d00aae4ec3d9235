// What the CUDA provider needs of a system, and where it comes from.

/** Names a folder that holds ONNX Runtime's library and its CUDA provider; without it they lie in onnxruntime-node. */
export const folderVariable = 'DSLA_ONNX_CUDA';

export const providerLibrary = 'libonnxruntime_providers_cuda.so';

/** Something that the CUDA provider needs of the system. */
export interface CudaRequirement {
  /** A library, or what stands for it. */
  readonly name: string;
  readonly version: string;
  /** How it is installed, as a sentence. */
  readonly install: string;
}

const linked = (name: string, version: string, debian: string, python: string): readonly [string, CudaRequirement] => [
  name,
  {
    name,
    version,
    install:
      `Install ${debian} of NVIDIA's package repository, or the Python package ${python}, ` +
      'and name the folder of the library in LD_LIBRARY_PATH',
  },
];

/** By the beginning of a library's name: which version, and where it comes from. `major`: of CUDA. */
export function requirementsOf(major: number): ReadonlyMap<string, CudaRequirement> {
  const suffix = major >= 13 ? '' : `-cu${major}`;
  return new Map([
    [
      'libcuda',
      {
        name: 'libcuda',
        version: `a driver for CUDA ${major}`,
        install: `Install NVIDIA's driver, ${major >= 13 ? '580' : '525'} or later`,
      },
    ],
    linked('libcudart', `${major}`, `cuda-cudart-${major}-0`, `nvidia-cuda-runtime${suffix}`),
    linked('libcublasLt', `${major}`, `libcublas-${major}-0`, `nvidia-cublas${suffix}`),
    linked('libcublas', `${major}`, `libcublas-${major}-0`, `nvidia-cublas${suffix}`),
    linked('libcurand', '10', `libcurand-${major}-0`, `nvidia-curand${suffix}`),
    linked('libcufft', `${major - 1}`, `libcufft-${major}-0`, `nvidia-cufft${suffix}`),
    linked('libcudnn', 'at least 9', `cudnn9-cuda-${major}`, `nvidia-cudnn-cu${major}`),
    // Without it ONNX Runtime's operators do all by themselves, more slowly.
    linked('libnvrtc', `${major}`, `cuda-nvrtc-${major}-0`, `nvidia-cuda-nvrtc${suffix}`),
  ]);
}

/** What the provider of an ONNX Runtime needs, itself first. `major`: of CUDA, 12 or 13. */
export function cudaRequirements(version: string, major: number = 12): readonly CudaRequirement[] {
  return [
    { name: 'onnxruntime-node', version, install: `Run npm install onnxruntime-node@${version}` },
    { name: providerLibrary, version, install: providerInstall(version) },
    ...[...requirementsOf(major).values()].filter(({ name }) => name !== 'libcufft'),
  ];
}

export function providerInstall(version: string): string {
  return (
    "Run onnxruntime-node's own installer, node node_modules/onnxruntime-node/script/install.js --onnxruntime-node-install=cuda12, " +
    `which brings ONNX Runtime ${version}'s provider for CUDA 12; or put that version's files for CUDA 12 or 13 into a folder ` +
    `and name it in the environment variable ${folderVariable}`
  );
}
