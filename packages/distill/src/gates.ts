import { type DualForm, f32, type HostTensor, type Loss } from '@dsla/spec';

// Terms of the loss that look at the gates. Gate logits [N, states * width], state-major; width = kvHeads (* headDim).

/** log2 of the tokens after which a state has lost half, from a gate logit: decay = sigmoid(logit)^(1 / temperature). */
export function log2HalfLife(logit: number, temperature: number): number {
  return Math.log2((Math.LN2 * temperature) / softplus(-logit));
}

/**
 * Keeps the states of a head apart on the scale that matters: mean over heads and neighbouring states of
 * max(0, octaves - (mean log2 half-life of the far one - of the near one))^2. The published cosine of the gates starts at
 * 0.9993 and hardly moves; half-lives of 16 and 4,480 tokens are 8 octaves apart.
 */
export function separation({ states, temperature }: DualForm, octaves: number): Extract<Loss, { kind: 'host' }>['of'] {
  return ({ gates }) => {
    const { data, shape } = gates as HostTensor;
    const [rows, width] = [shape[0]!, shape[1]! / states];
    const means = new Float64Array(states * width);
    for (let at = 0; at < data.length; at++) means[at % means.length]! += log2HalfLife(data[at]!, temperature) / rows;
    const slopes = new Float64Array(states * width); // by the mean log2 half-life
    const pairs = Math.max(1, (states - 1) * width);
    let loss = 0;
    for (let far = 0; far < (states - 1) * width; far++) {
      const lack = Math.max(0, octaves - (means[far]! - means[far + width]!));
      loss += lack ** 2 / pairs;
      slopes[far]! -= (2 * lack) / pairs;
      slopes[far + width]! += (2 * lack) / pairs;
    }
    const gradient = new Float32Array(data.length);
    for (let at = 0; at < data.length; at++) {
      const logit = data[at]!;
      gradient[at] = (slopes[at % slopes.length]! * sigmoid(-logit)) / (Math.LN2 * softplus(-logit) * rows);
    }
    return { loss, gradients: { gates: f32(shape, gradient) } };
  };
}

/**
 * Mean over tokens, heads and neighbouring states of the cosine between their decays, over the key channels of a head
 * (arXiv 2506.09316 eq. 10; with more than two states section 5.5). Vector gates.
 */
export function gateCosine({ states, kvHeads, headDim, temperature }: DualForm): Extract<Loss, { kind: 'host' }>['of'] {
  return ({ gates }) => {
    const { data, shape } = gates as HostTensor;
    const width = kvHeads * headDim;
    const gradient = new Float32Array(data.length);
    const pairs = shape[0]! * (states - 1) * kvHeads;
    let loss = 0;
    for (let row = 0; row < shape[0]!; row++) {
      for (let head = 0; head < (states - 1) * kvHeads; head++) {
        const far = row * states * width + head * headDim;
        loss += cosine(data, far, far + width, headDim, temperature, pairs, gradient);
      }
    }
    return { loss, gradients: { gates: f32(shape, gradient) } };
  };
}

/** Cosine of two stretches of decays divided by `pairs`; adds its gradient by the logits. */
function cosine(
  logits: HostTensor['data'],
  a: number,
  b: number,
  count: number,
  temperature: number,
  pairs: number,
  gradient: Float32Array,
): number {
  const decay = (at: number): number => Math.exp(-softplus(-logits[at]!) / temperature);
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < count; i++) {
    const [x, y] = [decay(a + i), decay(b + i)];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  const norm = Math.sqrt(aa * bb);
  const value = ab / norm;
  for (let i = 0; i < count; i++) {
    const [x, y] = [decay(a + i), decay(b + i)];
    gradient[a + i]! += ((y / norm - (value * x) / aa) * x * sigmoid(-logits[a + i]!)) / (temperature * pairs);
    gradient[b + i]! += ((x / norm - (value * y) / bb) * y * sigmoid(-logits[b + i]!)) / (temperature * pairs);
  }
  return value / pairs;
}

/** log(1 + e^x) without overflow. */
function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
