import type { Operator } from './operator.js';

/**
 * A token a row, as `Draw` of the contract says: logits [1, R, V] in float16 and settings [R, 4], temperature, k, p and uniform, ->
 * ids [1, R, 1], -1 where a logit is not a number. Sums are float32, always in the same order.
 */
export function drawOperator(vocabulary: number): Operator {
  return {
    name: `Draw ${vocabulary}`,
    inputs: [
      { type: 'float16', dims: [1, 'rows', vocabulary] },
      { type: 'float', dims: ['rows', 4] },
    ],
    outputs: [{ type: 'int32', dims: [1, 'rows', 1] }],
    source: `
#define COUNT ${vocabulary}
#define THREADS ${threads}
#define GROUPS (THREADS / 32)
/** Tokens of a thread where sums run by id. */
#define STRETCH ((COUNT + THREADS - 1) / THREADS)
#define NO_NUMBER 0x20000
#define LOG2E 1.4426950408889634f
${source}`,
    launches: [{ kernel: 'draw', grid: ['rows', 1, 1], threads }],
  };
}

/** 32 warps: the lanes of one add up what they make. */
const threads = 1024;

const source = `
/** Greater logits have greater keys, equal ones the same. */
__device__ __forceinline__ int keyOf(half_t x) {
  const int size = x & 0x7fff;
  return size > 0x7c00 ? NO_NUMBER : x & 0x8000 ? 0x8000 - size : 0x8000 + size;
}

struct Row {
  const half_t *logits;
  float top, rate;
  /** Key of the largest logit. */
  int most;
};
__device__ __forceinline__ float weightOf(const Row &row, half_t x) { return exp2f((toFloat(x) - row.top) * row.rate); }

/** What the logits with at least a key weigh together, or how many they are. */
template <bool COUNTED> __device__ float together(const Row &row, int least) {
  __shared__ float sums[GROUPS];
  float sum = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < COUNT; i += THREADS) {
    const half_t x = row.logits[i];
    if (keyOf(x) >= least) sum += COUNTED ? 1 : weightOf(row, x);
  }
  sum = warpSum(sum);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  return warpSum(sums[threadIdx.x % 32]);
}

/** The greatest key of which the logits are \`wanted\` together; those of \`least\` are. */
template <bool COUNTED> __device__ int cut(const Row &row, int least, float wanted) {
  int most = row.most;
  while (least < most) {
    const int middle = (least + most + 1) / 2;
    if (together<COUNTED>(row, middle) >= wanted) least = middle;
    else most = middle - 1;
  }
  return least;
}

/** The first of \`count\` at which the sum, which begins as it is, exceeds the mass, else the last that weighs anything; the sum before it. */
template <typename Weight> __device__ int exceeding(int count, float mass, float &sum, Weight weightAt) {
  int found = 0;
  float next = sum;
  for (int i = 0; i < count && next <= mass; i++) {
    const float weight = weightAt(i);
    if (weight == 0) continue;
    found = i;
    sum = next;
    next += weight;
  }
  return found;
}

extern "C" __global__ void __launch_bounds__(THREADS) draw(const half_t *logits, const float *settings, int *ids, int rows) {
  __shared__ unsigned long long best[THREADS]; // the key, then how far from the end
  __shared__ float stretches[THREADS], groups[GROUPS];
  const int t = threadIdx.x;
  Row row = {logits + (size_t)blockIdx.x * COUNT};
  unsigned long long own = 0;
#pragma unroll 8
  for (int i = t; i < COUNT; i += THREADS) own = max(own, (unsigned long long)keyOf(row.logits[i]) << 32 | (unsigned)(COUNT - i));
  best[t] = own;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) best[t] = max(best[t], best[t + half]);
  }
  __syncthreads();
  row.most = (int)(best[0] >> 32);
  const int first = COUNT - (int)(unsigned)best[0];
  const float *setting = settings + (size_t)blockIdx.x * 4;
  const float temperature = setting[0], k = setting[1], p = setting[2], uniform = setting[3];
  if (temperature == 0 || row.most == NO_NUMBER) {
    if (t == 0) ids[blockIdx.x] = row.most == NO_NUMBER ? -1 : first;
    return;
  }
  row.top = toFloat(row.logits[first]);
  row.rate = fminf(LOG2E / temperature, 3e38f);
  int least = 0;
  if (k < COUNT) least = cut<true>(row, least, k);
  if (p < 1) least = cut<false>(row, least, p * together<false>(row, least));
  auto weightAt = [&](int id) {
    const half_t x = row.logits[id];
    return keyOf(x) >= least ? weightOf(row, x) : 0;
  };
  float sum = 0;
#pragma unroll 8
  for (int id = t * STRETCH; id < min((t + 1) * STRETCH, COUNT); id++) sum += weightAt(id);
  stretches[t] = sum;
  sum = warpSum(sum);
  if (t % 32 == 0) groups[t / 32] = sum;
  __syncthreads();
  if (t > 0) return;
  float total = 0, before = 0;
  for (int group = 0; group < GROUPS; group++) total += groups[group];
  const float mass = uniform * total;
  int from = 32 * exceeding(GROUPS, mass, before, [&](int i) { return groups[i]; });
  from = STRETCH * (from + exceeding(32, mass, before, [&](int i) { return stretches[from + i]; }));
  ids[blockIdx.x] = from + exceeding(min(STRETCH, COUNT - from), mass, before, [&](int i) { return weightAt(from + i); });
}
`;
