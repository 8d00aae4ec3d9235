import { DslaError, elementCount, f32, type HostTensor, type Named } from '@dsla/spec';

/** Linear warm-up to `peak`, then half a cosine down to `floor` * peak at the last step. */
export interface Schedule {
  readonly peak: number;
  /** Steps until the peak is reached. */
  readonly warmUp: number;
  readonly steps: number;
  /** Share of the peak. */
  readonly floor: number;
}

/** Learning rate of step 0, 1, ..., steps - 1. */
export function rateAt(step: number, { peak, warmUp, steps, floor }: Schedule): number {
  if (step < warmUp) return (peak * (step + 1)) / warmUp;
  const share = Math.min(1, (step - warmUp) / Math.max(1, steps - 1 - warmUp));
  return peak * (floor + ((1 - floor) * (1 + Math.cos(Math.PI * share))) / 2);
}

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** Decoupled; of tensors with two axes or more: biases and logits have no reason to be near 0. */
  readonly decay: number;
}

/** Means of the gradients and of their squares, by weight, and the steps taken. In float32, so that a checkpoint is exact. */
export interface AdamWState {
  step: number;
  readonly first: Map<string, Float32Array>;
  readonly second: Map<string, Float32Array>;
}

export function adamWState(weights: Named<HostTensor>): AdamWState {
  const zeros = () =>
    new Map(Object.entries(weights).map(([name, { shape }]) => [name, new Float32Array(elementCount(shape))]));
  return { step: 0, first: zeros(), second: zeros() };
}

/** One step of AdamW (Loshchilov and Hutter 2019, algorithm 2), at a rate by name: new values; the state is updated in place. */
export function adamW(
  weights: Named<HostTensor>,
  gradients: Named<HostTensor>,
  state: AdamWState,
  rateOf: (name: string) => number,
  { beta1, beta2, epsilon, decay }: AdamWOptions,
): Named<HostTensor> {
  state.step += 1;
  const [correct1, correct2] = [1 - beta1 ** state.step, 1 - beta2 ** state.step];
  return mapTensors(weights, (values, name, shape) => {
    const [first, second, gradient] = [state.first.get(name)!, state.second.get(name)!, gradients[name]!.data];
    const rate = rateOf(name);
    const keep = shape.length >= 2 ? 1 - rate * decay : 1;
    return values.map((value, i) => {
      const g = gradient[i]!;
      first[i] = beta1 * first[i]! + (1 - beta1) * g;
      second[i] = beta2 * second[i]! + (1 - beta2) * g * g;
      return value * keep - (rate * (first[i]! / correct1)) / (Math.sqrt(second[i]! / correct2) + epsilon);
    });
  });
}

/** Euclidean norm over all tensors together. */
export function globalNorm(tensors: Named<HostTensor>): number {
  let sum = 0;
  for (const { data } of Object.values(tensors)) for (const value of data) sum += value * value;
  return Math.sqrt(sum);
}

/** All tensors times one factor. */
export function scaled(tensors: Named<HostTensor>, factor: number): Named<HostTensor> {
  return factor === 1 ? tensors : mapTensors(tensors, (values) => values.map((value) => value * factor));
}

/** Sum, tensor by tensor; the same names in both. */
export function added(a: Named<HostTensor>, b: Named<HostTensor>): Named<HostTensor> {
  return mapTensors(a, (values, name) => values.map((value, i) => value + b[name]!.data[i]!));
}

function mapTensors(
  tensors: Named<HostTensor>,
  of: (values: Float32Array, name: string, shape: readonly number[]) => Float32Array,
): Named<HostTensor> {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
      if (dtype !== 'f32')
        throw new DslaError('E_INPUT', { where: name, rule: 'must be f32 to be trained', got: dtype });
      return [name, f32(shape, of(data as Float32Array, name, shape))];
    }),
  );
}
