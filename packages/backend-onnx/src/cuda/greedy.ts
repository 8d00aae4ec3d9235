import type { Operator } from './operator.js';

/** The most likely token of every row, the first of equal ones, -1 where a logit is not a number: logits [1, R, V] in float16 -> [1, R, 1]. */
export function greedyOperator(vocabulary: number): Operator {
  return {
    name: `Greedy ${vocabulary}`,
    inputs: [{ type: 'float16', dims: [1, 'rows', vocabulary] }],
    outputs: [{ type: 'int32', dims: [1, 'rows', 1] }],
    source: `
#define COUNT ${vocabulary}
#define THREADS ${threads}
extern "C" __global__ void __launch_bounds__(THREADS) greedy(const half_t *logits, int *ids, int rows) {
  __shared__ float largest[THREADS];
  __shared__ int places[THREADS];
  const half_t *row = logits + (size_t)blockIdx.x * COUNT;
  const int t = threadIdx.x;
  float top = 0;
  int place = COUNT; // none yet; -1: not a number
  for (int i = t; i < COUNT; i += THREADS) {
    const float x = toFloat(row[i]);
    if (x != x) place = -1;
    else if (place == COUNT || (place >= 0 && x > top)) top = x, place = i;
  }
  largest[t] = top;
  places[t] = place;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t >= half) continue;
    const float x = largest[t + half];
    const int other = places[t + half];
    const bool later = other == COUNT || places[t] == -1 || (other >= 0 && places[t] < COUNT && (x < largest[t] || (x == largest[t] && other > places[t])));
    if (later) continue;
    largest[t] = x;
    places[t] = other;
  }
  if (t == 0) ids[blockIdx.x] = places[0];
}
`,
    launches: [{ kernel: 'greedy', grid: ['rows', 1, 1], threads }],
  };
}

const threads = 1024;
