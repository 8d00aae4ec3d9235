import type { Kernel } from './kernels/kernel.js';

/** A compiled kernel with the bind groups of the buffers it was run on lately. */
export interface Pipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Pipelines by source text, layouts by access: each made once a device. */
export class Pipelines {
  readonly batchLayout: GPUBindGroupLayout;
  /** For kernels that run on no batch. */
  readonly noBatch: GPUBindGroup;
  readonly #device: GPUDevice;
  readonly #layouts = new Map<string, GPUBindGroupLayout>();
  readonly #pipelines = new Map<string, Promise<Pipeline>>();

  constructor(device: GPUDevice) {
    this.#device = device;
    this.batchLayout = this.#layout(['read']);
    const buffer = device.createBuffer({ label: 'no batch', size: 16, usage: 0x80 }); // STORAGE
    this.noBatch = device.createBindGroup({
      layout: this.batchLayout,
      entries: [{ binding: 0, resource: { buffer } }],
    });
  }

  get(kernel: Kernel): Promise<Pipeline> {
    let pipeline = this.#pipelines.get(kernel.code);
    if (!pipeline) {
      pipeline = this.#compile(kernel);
      this.#pipelines.set(kernel.code, pipeline);
    }
    return pipeline;
  }

  async #compile(kernel: Kernel): Promise<Pipeline> {
    const layout = this.#layout(kernel.access);
    this.#device.pushErrorScope('validation');
    const module = this.#device.createShaderModule({ label: kernel.name, code: kernel.code });
    const error = await this.#device.popErrorScope();
    if (error) throw new Error(error.message);
    const pipeline = await this.#device.createComputePipelineAsync({
      label: kernel.name,
      layout: this.#device.createPipelineLayout({ bindGroupLayouts: [this.batchLayout, layout] }),
      compute: { module, entryPoint: 'main' },
    });
    return { pipeline, layout };
  }

  #layout(access: Kernel['access']): GPUBindGroupLayout {
    const key = access.join();
    let layout = this.#layouts.get(key);
    if (!layout) {
      layout = this.#device.createBindGroupLayout({
        entries: access.map((kind, binding) => ({
          binding,
          visibility: 4, // COMPUTE
          buffer: { type: kind === 'read' ? 'read-only-storage' : 'storage' },
        })),
      });
      this.#layouts.set(key, layout);
    }
    return layout;
  }
}
