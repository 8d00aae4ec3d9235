import type { AttentionLayer, Device, DeviceBuffer, Named, WeightSource } from './backend.js';
import type { LayerGraph, Weight } from './graph.js';
import type { HostTensor } from './tensor.js';

// The optional facet of a device that can train. It computes losses and gradients; what is done with them (AdamW, clipping,
// accumulation, schedules, checkpoints) is arithmetic on small host tensors, the same for every device, and exactly
// resumable there. Hence gradients come to the host, and weights go back from it.

export interface TrainingDevice extends Device {
  /**
   * As `compile`, with gradients by the weights that `trainable` names. Weights are those of the device: a layer compiled for
   * inference that uses the same name sees every `assign`. Several layers are trained as one tape (joinGraphs).
   * @throws DslaError E_UNSUPPORTED for a node without gradient (foldState), E_INPUT for a weight that the tape lacks
   */
  compileTrainable(
    graph: LayerGraph,
    weights: WeightSource,
    trainable: readonly Weight[],
    signal?: AbortSignal,
  ): Promise<TrainableLayer>;
}

export function isTrainingDevice(device: Device): device is TrainingDevice {
  return 'compileTrainable' in device;
}

/** `rows` sequences of `tokens` tokens each, end to end; N = rows * tokens. Every row starts with empty states. */
export interface SequenceBatch {
  readonly rows: number;
  readonly tokens: number;
  /** Token ids [N]; may be left out by a tape that does not embed. */
  readonly ids?: Int32Array;
  /** Named inputs [N, width], owned by the caller. */
  readonly inputs?: Named<DeviceBuffer | HostTensor>;
}

/** A term of the loss; `weight` (default 1) multiplies it and its gradient. */
export type Loss =
  /** Mean over all entries of (output - target)^2. */
  | {
      readonly kind: 'mse';
      readonly output: string;
      readonly target: DeviceBuffer | HostTensor;
      readonly weight?: number;
    }
  /** Mean over the vectors of KL(softmax(teacher) || softmax(output)), in nats; teacher: logits. */
  | {
      readonly kind: 'kl';
      readonly output: string;
      readonly teacher: DeviceBuffer | HostTensor;
      readonly weight?: number;
    }
  /** Anything else, computed on the host from the named outputs, with its gradient by each of them. */
  | {
      readonly kind: 'host';
      readonly outputs: readonly string[];
      readonly of: (outputs: Named<HostTensor>) => { readonly loss: number; readonly gradients: Named<HostTensor> };
      readonly weight?: number;
    };

export interface Gradients {
  /** The weighted sum of the terms. */
  readonly loss: number;
  /** Each term without its weight, in the order of the losses. */
  readonly terms: readonly number[];
  /** By trainable weight, in its shape; zeros where the loss does not depend on it. */
  readonly byWeight: Named<HostTensor>;
}

/** Calls may not overlap: one layer, one call at a time. */
export interface TrainableLayer extends AttentionLayer {
  readonly trainable: readonly Weight[];
  /** The named outputs, owned by the caller. Keeps nothing for a gradient. */
  forward(batch: SequenceBatch): Named<DeviceBuffer>;
  /** Forward and backward. Nothing is left on the device, also where it throws. */
  gradients(batch: SequenceBatch, losses: readonly Loss[]): Promise<Gradients>;
  /** The present value of a weight of this tape, as f32. */
  read(weight: Weight): Promise<HostTensor>;
  /** Replaces values of trainable weights, all or none. @throws DslaError E_INPUT for another name, shape or type */
  assign(weights: Named<HostTensor>): void;
}
