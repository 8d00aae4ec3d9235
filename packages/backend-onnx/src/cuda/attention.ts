import type { Operator } from './operator.js';

/** Causal softmax attention of one token in float16, with its rotation, over a cache that it appends to. */
export interface AttentionForm {
  readonly heads: number;
  readonly kvHeads: number;
  /** A multiple of 8, at most 256. */
  readonly headDim: number;
  /** Leading channels of a head that are rotated; 0: none. */
  readonly rotaryDim: number;
  readonly scale: number;
  /** q, k and v are one value. */
  readonly packed: boolean;
}

/**
 * Inputs: q, k, v [1, 1, heads * headDim] or all in one; keys and values [1, kvHeads, tokens, headDim]; the number of tokens that
 * these hold, int32 [1]; where there is a rotation its cos and sin [positions, rotaryDim / 2]. Outputs: [1, 1, heads * headDim]; keys
 * and values, which must be the memory of the inputs: one entry is written.
 *
 * A cluster of blocks shares the tokens of a head among them; each goes through its own as in "Online normalizer calculation for
 * softmax" (Milakov, Gimelshein, 2018), then all merge what they have through their shared memories.
 */
export function attentionOperator(form: AttentionForm): Operator {
  const { heads, kvHeads, headDim, rotaryDim, packed, scale } = form;
  const half = (...dims: (number | string)[]) => ({ type: 'float16', dims }) as const;
  const vector = (of: number) => half(1, 1, of * headDim);
  const cache = half(1, kvHeads, 'tokens', headDim);
  const table = half('positions', rotaryDim / 2);
  const queries = queriesOf(form);
  const slices = heads / kvHeads / queries;
  const splits = splitsOf(kvHeads * slices);
  const shape = `${heads} ${kvHeads} ${headDim} ${rotaryDim} ${scale}`;
  return {
    name: `Attention ${shape}${packed ? ' packed' : ''}`,
    inputs: [
      ...(packed ? [vector(heads + 2 * kvHeads)] : [vector(heads), vector(kvHeads), vector(kvHeads)]),
      cache,
      cache,
      { type: 'int32', dims: [1] },
      ...(rotaryDim > 0 ? [table, table] : []),
    ],
    outputs: [vector(heads), cache, cache],
    source: sourceOf(form, queries, splits),
    launches: [{ kernel: 'attention', grid: [splits, kvHeads, slices], threads: 32 * warps, early: true }],
  };
}

/** Warps of a block, and the 16-byte loads of keys and of values that each lane has on their way. */
const [warps, loads] = [4, 4];

/** Blocks that keep a large device busy. */
const busy = 256;
/** Of a cluster: no more on every device. */
const mostSplits = 8;

/** Queries that a block serves at once, sharing what it reads: one where there are few blocks. */
function queriesOf({ heads, kvHeads }: AttentionForm): number {
  const group = heads / kvHeads;
  const shared = [4, 3, 2].find((count) => group % count === 0 && (heads / count) * mostSplits >= busy);
  return shared ?? 1;
}

/** Blocks of a cluster. */
function splitsOf(clusters: number): number {
  return [1, 2, 4].find((splits) => splits * clusters >= busy) ?? mostSplits;
}

function sourceOf(
  { heads, kvHeads, headDim, rotaryDim, scale, packed }: AttentionForm,
  queries: number,
  splits: number,
) {
  const lanes = [1, 2, 4, 8, 16, 32].find((count) => 8 * count >= headDim)!;
  const tables = rotaryDim > 0 ? 'const half_t *cosines, const half_t *sines, ' : '';
  return `
#define HEADS ${heads}
#define KV_HEADS ${kvHeads}
#define HEAD ${headDim}
#define ROTARY ${rotaryDim}
#define SCALE ${scale * Math.LOG2E}f
#define QUERIES ${queries}
#define SPLITS ${splits}
#define WARPS ${warps}
#define LOADS ${loads}
#define LANES ${lanes}
${clusters}
${parts}
${rotaryDim > 0 ? rotation : ''}
extern "C" __global__ void __cluster_dims__(SPLITS, 1, 1) __launch_bounds__(THREADS) attention(
    ${packed ? 'const half_t *q' : 'const half_t *q, const half_t *k, const half_t *v'}, const half_t *keys, const half_t *values,
    const int *past, ${tables}half_t *y, half_t *nextKeys, half_t *nextValues, int capacity${rotaryDim > 0 ? ', int' : ''}) {
  const int kv = blockIdx.y, head = kv * (HEADS / KV_HEADS) + blockIdx.z * QUERIES;
  ${packed ? 'const half_t *k = q + HEADS * HEAD, *v = k + KV_HEADS * HEAD;' : ''}
  ${rotaryDim > 0 ? 'const Rotation rotation = {cosines + *past * (ROTARY / 2), sines + *past * (ROTARY / 2)};' : 'const Plain rotation;'}
  const size_t cache = (size_t)kv * capacity * HEAD;
  attend(q + head * HEAD, k + kv * HEAD, v + kv * HEAD, keys + cache, values + cache, *past, rotation, y + head * HEAD,
         nextKeys + cache, nextValues + cache);
}
`;
}

const rotation = `
/** Pairs (i, i + ROTARY / 2) of a head's channels turn by the angles of a position. */
struct Rotation {
  const half_t *cosines, *sines;
  __device__ float channel(const half_t *x, int i) const {
    const int half = ROTARY / 2, pair = i % half;
    const float own = toFloat(x[i]);
    if (i >= ROTARY) return own;
    const float c = toFloat(cosines[pair]), s = toFloat(sines[pair]);
    return i < half ? own * c - toFloat(x[i + half]) * s : own * c + toFloat(x[i - half]) * s;
  }
};
`;

/** What the blocks of a cluster do together. */
export const clusters: string = `
__device__ __forceinline__ void clusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/** What another block of the cluster has where p points to here. */
__device__ __forceinline__ float ofBlock(const float *p, int block) {
  float v;
  asm volatile("{\\n.reg .u32 at;\\nmapa.shared::cluster.u32 at, %1, %2;\\nld.shared::cluster.f32 %0, [at];\\n}"
               : "=f"(v) : "r"((uint32)__cvta_generic_to_shared(p)), "r"(block) : "memory");
  return v;
}
`;

const parts = `
#define TOKENS (32 / LANES)
#define THREADS (32 * WARPS)
#define NONE -1e30f

struct Plain {
  __device__ float channel(const half_t *x, int i) const { return toFloat(x[i]); }
};

/** Of some tokens: their best score, the sum of weights 2^(score - best), and of values so weighted, of 8 channels. */
struct Part {
  float best, total, sum[8];
};

__device__ __forceinline__ void rescale(Part &part, float best) {
  const float scale = exp2f(part.best - best);
  part.best = best;
  part.total *= scale;
#pragma unroll
  for (int j = 0; j < 8; j++) part.sum[j] *= scale;
}

__device__ __forceinline__ void merge(Part &part, Part other) {
  rescale(part, fmaxf(part.best, other.best));
  rescale(other, part.best);
  part.total += other.total;
#pragma unroll
  for (int j = 0; j < 8; j++) part.sum[j] += other.sum[j];
}

/** Sum over the lanes that share a token. */
__device__ __forceinline__ float tokenSum(float x) {
#pragma unroll
  for (int lane = LANES / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

/** This lane's channels of TOKENS * LOADS tokens from one on; x: of the first of all. Beyond the last one it is read again. */
__device__ __forceinline__ void load(uint4 (&a)[LOADS], const uint4 *x, int from, int to) {
  const int slot = threadIdx.x % 32 / LANES;
  const bool active = 8 * (threadIdx.x % LANES) < HEAD;
#pragma unroll
  for (int u = 0; u < LOADS; u++)
    a[u] = active ? streamed(x + min(from + u * TOKENS + slot, to - 1) * (HEAD / 8)) : make_uint4(0, 0, 0, 0);
}

/** Takes in what was loaded of their keys and values. */
__device__ __forceinline__ void take(Part (&part)[QUERIES], const float (&q)[QUERIES][8], const uint4 (&a)[LOADS],
                                     const uint4 (&b)[LOADS], int from, int to) {
  const int slot = threadIdx.x % 32 / LANES;
#pragma unroll
  for (int i = 0; i < QUERIES; i++) {
    float score[LOADS], f[8], best = part[i].best;
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      unpack(f, a[u]);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 8; j++) sum = fmaf(f[j], q[i][j], sum);
      sum = tokenSum(sum);
      score[u] = from + u * TOKENS + slot < to ? sum : NONE;
      best = fmaxf(best, score[u]);
    }
    rescale(part[i], best);
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      const float weight = score[u] == NONE ? 0 : exp2f(score[u] - best);
      unpack(f, b[u]);
      part[i].total += weight;
#pragma unroll
      for (int j = 0; j < 8; j++) part[i].sum[j] = fmaf(weight, f[j], part[i].sum[j]);
    }
  }
}

/** What a block found, by query: merged over its warps. */
struct Found {
  float best[QUERIES], total[QUERIES], sum[QUERIES][HEAD];
};

__device__ __forceinline__ void mergeWarps(Found &found, Part (&part)[QUERIES]) {
  __shared__ Found warps[WARPS];
  const int lane = threadIdx.x % 32, first = 8 * (lane % LANES);
  Found &mine = warps[threadIdx.x / 32];
#pragma unroll
  for (int i = 0; i < QUERIES; i++) {
#pragma unroll
    for (int far = LANES; far < 32; far *= 2) {
      Part other;
      other.best = __shfl_xor_sync(0xffffffffu, part[i].best, far);
      other.total = __shfl_xor_sync(0xffffffffu, part[i].total, far);
#pragma unroll
      for (int j = 0; j < 8; j++) other.sum[j] = __shfl_xor_sync(0xffffffffu, part[i].sum[j], far);
      merge(part[i], other);
    }
    if (lane < LANES && first < HEAD)
      for (int j = 0; j < 8; j++) mine.sum[i][first + j] = part[i].sum[j];
    if (lane == 0) mine.best[i] = part[i].best, mine.total[i] = part[i].total;
  }
  __syncthreads();
  for (int n = threadIdx.x; n < QUERIES * HEAD; n += THREADS) {
    const int i = n / HEAD, c = n % HEAD;
    float best = NONE, total = 0, sum = 0;
    for (int w = 0; w < WARPS; w++) best = fmaxf(best, warps[w].best[i]);
    for (int w = 0; w < WARPS; w++) {
      const float scale = exp2f(warps[w].best[i] - best);
      total += scale * warps[w].total[i];
      sum += scale * warps[w].sum[i][c];
    }
    found.sum[i][c] = sum;
    if (c == 0) found.best[i] = best, found.total[i] = total;
  }
}

/** Every block of the cluster writes a part of the channels. */
__device__ __forceinline__ void mergeBlocks(half_t *y, const Found &found) {
  clusterSync();
  for (int n = blockIdx.x * THREADS + threadIdx.x; n < QUERIES * HEAD; n += SPLITS * THREADS) {
    const int i = n / HEAD;
    float best = NONE, total = 0, sum = 0, bests[SPLITS];
#pragma unroll
    for (int block = 0; block < SPLITS; block++) best = fmaxf(best, bests[block] = ofBlock(&found.best[i], block));
#pragma unroll
    for (int block = 0; block < SPLITS; block++) {
      const float scale = exp2f(bests[block] - best);
      total += scale * ofBlock(&found.total[i], block);
      sum += scale * ofBlock(&found.sum[0][n], block);
    }
    y[n] = toHalf(sum / total);
  }
  clusterSync();
}

/**
 * Pointers of a key-value head and its first query. The first block of a cluster takes the new token along. What is in the cache is of
 * earlier steps, so that it can be read before the kernels before this one are done.
 */
template <class Turn>
__device__ __forceinline__ void attend(const half_t *query, const half_t *newKey, const half_t *newValue, const half_t *keys,
                                       const half_t *values, int past, Turn turn, half_t *y, half_t *nextKeys,
                                       half_t *nextValues) {
  __shared__ float queries[QUERIES][HEAD], key[HEAD];
  __shared__ Found found;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = 8 * (lane % LANES);
  const int each = (past + SPLITS - 1) / SPLITS, from = blockIdx.x * each, to = min(past, from + each);
  const int step = TOKENS * LOADS;
  const uint4 *k = (const uint4 *)(keys + first), *v = (const uint4 *)(values + first);
  uint4 a[LOADS], b[LOADS];
  int at = from + warp * step;
  if (at < to) load(a, k, at, to), load(b, v, at, to);
  before();
  for (int n = threadIdx.x; n < QUERIES * HEAD; n += THREADS)
    queries[n / HEAD][n % HEAD] = SCALE * turn.channel(query + n / HEAD * HEAD, n % HEAD);
  if (blockIdx.x == 0)
    for (int c = threadIdx.x; c < HEAD; c += THREADS) {
      const half_t turned = toHalf(turn.channel(newKey, c));
      key[c] = toFloat(turned);
      if (blockIdx.z > 0) continue;
      nextKeys[(size_t)past * HEAD + c] = turned;
      nextValues[(size_t)past * HEAD + c] = newValue[c];
    }
  __syncthreads();
  float q[QUERIES][8];
  Part part[QUERIES];
#pragma unroll
  for (int i = 0; i < QUERIES; i++) {
    part[i] = {NONE};
#pragma unroll
    for (int j = 0; j < 8; j++) q[i][j] = first < HEAD ? queries[i][first + j] : 0;
  }
  while (at < to) {
    const int next = at + WARPS * step;
    uint4 nextA[LOADS], nextB[LOADS];
    if (next < to) load(nextA, k, next, to), load(nextB, v, next, to);
    take(part, q, a, b, at, to);
    for (int u = 0; u < LOADS; u++) a[u] = nextA[u], b[u] = nextB[u];
    at = next;
  }
  if (blockIdx.x == 0 && warp == 0) {
    const bool counts = lane < LANES;
    for (int i = 0; i < QUERIES; i++) {
      Part fresh = {NONE, counts ? 1.0f : 0.0f};
      float sum = 0;
      for (int j = 0; j < 8 && first < HEAD; j++) {
        sum = fmaf(key[first + j], q[i][j], sum);
        if (counts) fresh.sum[j] = toFloat(newValue[first + j]);
      }
      sum = tokenSum(sum);
      if (counts) fresh.best = sum;
      merge(part[i], fresh);
    }
  }
  mergeWarps(found, part);
  mergeBlocks(y, found);
}
`;
