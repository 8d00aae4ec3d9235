import { type DualForm, gateWidth } from '@dsla/spec';
import { gammas } from './dual-outputs.js';
import { instructions } from './matrices.js';
import { type NamedOperator, namedOperator, type Port } from './named.js';

// Dual linear attention with an exact part of one token of each of B rows, in float16: first what is as large as a token and its
// window, then the states, which takes as long as reading and writing them.

export interface DualStep {
  readonly heads: number;
  readonly form: DualForm;
  /** Width of phi. */
  readonly features: number;
  /** Of the scores of the exact part. */
  readonly scale: number;
  /** One row of mix a head, or one for all. */
  readonly mixPerHead: boolean;
}

/** Whether the kernels take a form: a thread for each of its channels and rows of a map, and a ring in shared memory. */
export function takesStep({ heads, form, features }: Pick<DualStep, 'heads' | 'form' | 'features'>): boolean {
  const { exact, headDim, kvHeads } = form;
  return (
    exact !== undefined &&
    exact.window + exact.sinks <= 2048 &&
    headDim <= 128 &&
    features <= 256 &&
    heads / kvHeads <= 8
  );
}

/** Blocks that share the features of the states of a row and kv head, and the warps of each. */
const [splits, warps] = [4, 8];

/**
 * q [B, 1, heads*hd], k and v [B, 1, g*hd], gates [B, 1, gate width], past int64 [B], the states [B*St, g, F, hd + 1], the ring, mix,
 * logWeight, the maps, tables of cosines and sines where there is a rope; o [B, 1, heads*hd], the states, the ring.
 */
export function dualStepOperator(of: DualStep): NamedOperator {
  const { heads, form, features, scale, mixPerHead } = of;
  const { kvHeads, headDim, states, exact, rope, ropeInState, temperature } = form;
  const { window, sinks } = exact!;
  const constants = {
    HEADS: heads,
    KV_HEADS: kvHeads,
    STATES: states,
    FEATURES: features,
    COLUMNS: headDim,
    MIXES: mixPerHead ? heads : 1,
    WINDOW: window,
    SINKS: sinks,
    ROTARY: rope?.rotaryDim ?? 0,
    ROPE_IN_STATE: Number(ropeInState),
    RATE: `${(1 / Math.LN2 / temperature).toExponential()}f`,
    SCALE: `${(scale / Math.LN2).toExponential()}f`,
    SPLITS: splits,
    WARPS: warps,
  };
  const table = ['positions', (rope?.rotaryDim ?? 0) / 2];
  const tables: readonly Port[] = [
    ['cosines', 'float', table],
    ['sines', 'float', table],
  ];
  const inputs: readonly Port[] = [
    ['q', 'float16', ['rows', 1, heads * headDim]],
    ['k', 'float16', ['rows', 1, kvHeads * headDim]],
    ['v', 'float16', ['rows', 1, kvHeads * headDim]],
    ['gates', 'float16', ['rows', 1, gateWidth(form)]],
    ['past', 'int64', ['rows']],
    ...statesOf('before', 'ring', of),
    ['mix', 'float', [mixPerHead ? heads : 1, states]],
    ['logWeight', 'float', [heads]],
    ['mapQ', 'float16', [heads, features / 2, headDim]],
    ['mapK', 'float16', [kvHeads, features / 2, headDim]],
    ...(rope ? tables : []),
  ];
  const outputs: readonly Port[] = [
    ['o', 'float16', ['rows', 1, heads * headDim]],
    ...statesOf('after', 'kept', of),
    ['phiQ', 'float', ['rows', heads, features]],
    ['phiK', 'float', ['rows', kvHeads, features]],
    ['value', 'float', ['rows', kvHeads, headDim]],
    ['fades', 'float', ['rows', states, kvHeads]],
    ['exact', 'float', ['rows', heads, headDim]],
    ['shares', 'float', ['rows', heads]],
    ['parts', 'float', ['rows', heads, splits, headDim]],
  ];
  return namedOperator({
    name: `DualStep ${Object.values(constants).join(' ')}`,
    inputs,
    outputs,
    absent: rope ? [] : tables,
    source: [
      ...Object.entries(constants).map(([name, value]) => `#define ${name} ${value}`),
      instructions,
      gammas,
      source,
    ].join('\n'),
    launches: [
      { kernel: 'arrive', grid: [kvHeads, 'rows', 1], threads: 128 },
      { kernel: 'advance', grid: [splits, kvHeads, 'rows'], threads: 32 * warps },
      { kernel: 'join', grid: [heads, 'rows', 1], threads: 128 },
    ],
  });
}

function statesOf(states: string, ring: string, { form, features }: DualStep): readonly Port[] {
  const { kvHeads, headDim, exact } = form;
  const entries = exact!.sinks + exact!.window;
  return [
    [states, 'float', ['states', kvHeads, features, headDim + 1]],
    [`${ring}Keys`, 'float16', ['rows', kvHeads, entries, headDim]],
    [`${ring}Values`, 'float16', ['rows', kvHeads, entries, headDim]],
    [`${ring}Gates`, 'float', ['rows', entries, gateWidth(form)]],
  ];
}

const source = `
#define GATES (STATES * KV_HEADS)
#define RING (SINKS + WINDOW)
#define ROWS (FEATURES / 2)
#define TOGETHER (HEADS / KV_HEADS)
#define LOG2E 1.4426950408889634f
/** Lanes that share a dot product of a head, 8 channels each. */
#define LANES 16
#define GROUPS (128 / LANES)
/** Features of a state that a warp has on their way, and columns of a lane. */
#define AHEAD 4
#define ACROSS ((COLUMNS + 31) / 32)

__device__ __forceinline__ float blockMax(float x, float *room) {
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  return fmaxf(fmaxf(room[0], room[1]), fmaxf(room[2], room[3]));
}
__device__ __forceinline__ float blockSum(float x, float *room) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  return room[0] + room[1] + room[2] + room[3];
}

/** Channel c of a head at a position turned by the rope, or back. */
__device__ __forceinline__ float turned(const Given &in, const float *x, int c, long long position, bool back) {
#if ROTARY
  if (c >= ROTARY) return x[c];
  const int pair = c % (ROTARY / 2);
  const size_t at = position * (ROTARY / 2) + pair;
  const float cosine = in.cosines[at], sine = back ? -in.sines[at] : in.sines[at];
  return c < ROTARY / 2 ? x[c] * cosine - x[pair + ROTARY / 2] * sine : x[c] * cosine + x[pair] * sine;
#else
  return x[c];
#endif
}

/** Has use(r, eight) see every row of a matrix [COUNT, COLUMNS], 16 lanes a row: 8 channels a lane, zeros beyond them and the last row. */
template <int COUNT, typename Use> __device__ __forceinline__ void eachRow(const half_t *rows, Use use) {
  const int c = threadIdx.x % LANES * 8, first = threadIdx.x / LANES;
  for (int from = 0; from < COUNT; from += 8 * GROUPS) {
    uint4 loads[8];
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const int r = from + n * GROUPS + first;
      loads[n] = c < COLUMNS && r < COUNT ? *(const uint4 *)(rows + (size_t)r * COLUMNS + c) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int n = 0; n < 8; n++) use(from + n * GROUPS + first, loads[n]);
  }
}

/** out[r] = rows[r].x for a matrix [COUNT, COLUMNS] and x in shared memory. */
template <int COUNT> __device__ __forceinline__ void products(float *out, const half_t *rows, const float *x) {
  const int lane = threadIdx.x % LANES, c = lane * 8;
  float own[8];
#pragma unroll
  for (int j = 0; j < 8; j++) own[j] = c < COLUMNS ? x[c + j] : 0;
  eachRow<COUNT>(rows, [&](int r, const uint4 &eight) {
    float row[8], sum = 0;
    unpack(row, eight);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += row[j] * own[j];
    for (int other = LANES / 2; other > 0; other /= 2) sum += __shfl_xor_sync(~0u, sum, other);
    if (lane == 0 && r < COUNT) out[r] = sum;
  });
  __syncthreads();
}

/** out[c] = sum over r of weights[r] rows[r][c], rows of weight 0 left out; room [GROUPS * COLUMNS]. */
template <int COUNT> __device__ __forceinline__ float weighted(const float *weights, const half_t *rows, float *room) {
  const int c = threadIdx.x % LANES * 8;
  float sum[8] = {};
  eachRow<COUNT>(rows, [&](int r, const uint4 &eight) {
    const float weight = r < COUNT ? weights[r] : 0;
    float row[8];
    unpack(row, eight);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += weight > 0 ? weight * row[j] : 0;
  });
  if (c < COLUMNS)
#pragma unroll
    for (int j = 0; j < 8; j++) room[threadIdx.x / LANES * COLUMNS + c + j] = sum[j];
  __syncthreads();
  float total = 0;
  for (int group = 0; group < GROUPS && threadIdx.x < COLUMNS; group++) total += room[group * COLUMNS + threadIdx.x];
  return total;
}

/** phi [FEATURES] of x, to shared and to global memory, times a weight. */
__device__ __forceinline__ void map(float *phi, float *out, const half_t *w, const float *x, float weight, float *room) {
  products<ROWS>(phi, w, x);
  float y = 0, top = 0;
  if (threadIdx.x < ROWS) y = phi[threadIdx.x];
  top = blockMax(fabsf(y), room);
  if (threadIdx.x < ROWS)
    for (int sign = 0; sign < 2; sign++) {
      const float value = weight * power(((sign ? -y : y) - top) * LOG2E);
      out[sign * ROWS + threadIdx.x] = phi[sign * ROWS + threadIdx.x] = value;
    }
  __syncthreads();
}

/**
 * A row and kv head: the token enters the ring and the one that leaves it is made ready for the states, whose column of ones moves on;
 * for every query head phi, exact = what the window gives of the output, and shares = what the states' columns are to be multiplied with.
 */
extern "C" __global__ void __launch_bounds__(128) arrive(ARGUMENTS) {
  GIVEN;
  __shared__ float x[COLUMNS], y[COLUMNS], key[FEATURES], query[FEATURES], sums[STATES * FEATURES], scores[RING], fades[STATES], room[4], sumsOf[GROUPS * COLUMNS];
  const int kv = blockIdx.x, row = blockIdx.y, c = threadIdx.x;
  const int past = (int)in.past[row], entry = past < SINKS ? past : SINKS + (past - SINKS) % WINDOW, leaving = past - WINDOW;
  const bool leaves = leaving >= SINKS;
  const size_t head = (size_t)row * KV_HEADS + kv, place = (head * RING + entry) * COLUMNS + c;
  const float newValue = c < COLUMNS ? toFloat(in.v[head * COLUMNS + c]) : 0;
  if (c < COLUMNS) {
    x[c] = toFloat(in.k[head * COLUMNS + c]);
    y[c] = leaves ? toFloat(in.ringKeys[place]) : 0;
    in.value[head * COLUMNS + c] = leaves ? toFloat(in.ringValues[place]) : 0;
  }
  if (c < STATES) {
    const size_t gate = ((size_t)row * RING + entry) * GATES + c * KV_HEADS + kv;
    const float logit = leaves ? in.ringGates[gate] : 0;
    fades[c] = leaves ? power((fminf(logit, 0) - log1pf(__expf(-fabsf(logit)))) * RATE) : 1;
    in.fades[((size_t)row * STATES + c) * KV_HEADS + kv] = fades[c];
    in.keptGates[gate] = toFloat(in.gates[(size_t)row * GATES + c * KV_HEADS + kv]);
  }
  __syncthreads();
  float old = 0;
  if (c < COLUMNS) {
    in.keptKeys[place] = toHalf(turned(in, x, c, past, false));
    in.keptValues[place] = toHalf(newValue);
    old = ROPE_IN_STATE ? y[c] : turned(in, y, c, leaves ? leaving : 0, true);
  }
  __syncthreads();
  if (c < COLUMNS) x[c] = old;
  __syncthreads();
  map(key, in.phiK + head * FEATURES, in.mapK + (size_t)kv * ROWS * COLUMNS, x, leaves ? 1 : 0, room);
  for (int e = c; e < STATES * FEATURES; e += 128) {
    const int i = e / FEATURES, f = e % FEATURES;
    const size_t at = ((((size_t)row * STATES + i) * KV_HEADS + kv) * FEATURES + f) * (COLUMNS + 1) + COLUMNS;
    in.after[at] = sums[e] = in.before[at] * fades[i] + key[f];
  }
  for (int together = 0; together < TOGETHER; together++) {
    const int of = kv * TOGETHER + together;
    const size_t own = (size_t)row * HEADS + of;
    __syncthreads();
    if (c < COLUMNS) x[c] = toFloat(in.q[own * COLUMNS + c]);
    __syncthreads();
    if (c < COLUMNS) y[c] = turned(in, x, c, past, false);
    __syncthreads();
    map(query, in.phiQ + own * FEATURES, in.mapQ + (size_t)of * ROWS * COLUMNS, ROPE_IN_STATE ? y : x, 1, room);
    float weight = 0;
    for (int i = 0; i < STATES; i++) {
      float sum = 0;
      for (int f = c; f < FEATURES; f += 128) sum += query[f] * sums[i * FEATURES + f];
      weight += gammaOf(in, of, i) * sum;
    }
    const float fromStates = blockSum(weight, room);
    products<RING>(scores, in.keptKeys + head * RING * COLUMNS, y);
    float top = -1e30f;
    for (int j = c; j < RING; j += 128) {
      scores[j] = (j < SINKS ? j <= past : j - SINKS <= past - SINKS) ? scores[j] * SCALE : -1e30f;
      top = fmaxf(top, scores[j]);
    }
    top = blockMax(top, room);
    float sum = 0;
    for (int j = c; j < RING; j += 128) sum += scores[j] = scores[j] > -1e30f ? power(scores[j] - top) : 0;
    const float inWindow = blockSum(sum, room);
    const float excess = fmaxf(in.logWeight[of], 0), exact = power(-excess * LOG2E), share = power((in.logWeight[of] - excess) * LOG2E);
    const float divisor = 1 / (exact * inWindow + share * fromStates);
    const float total = weighted<RING>(scores, in.keptValues + head * RING * COLUMNS, sumsOf);
    if (c < COLUMNS) in.exact[own * COLUMNS + c] = total * exact * divisor;
    if (c == 0) in.shares[own] = share * divisor;
  }
}

/** A part of the features of the states of a row and kv head: S <- fade S + phi(k) v^T; parts = sum_i gamma_i phi(q)^T S_i. */
extern "C" __global__ void __launch_bounds__(32 * WARPS) advance(ARGUMENTS) {
  GIVEN;
  const int share = (FEATURES + SPLITS - 1) / SPLITS;
  __shared__ float key[share], queries[TOGETHER][share], parts[WARPS][TOGETHER][COLUMNS];
  const int f0 = blockIdx.x * share, count = min(share, FEATURES - f0), kv = blockIdx.y, row = blockIdx.z;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const size_t head = (size_t)row * KV_HEADS + kv, own = (size_t)row * HEADS + kv * TOGETHER;
  for (int f = threadIdx.x; f < count; f += 32 * WARPS) key[f] = in.phiK[head * FEATURES + f0 + f];
  for (int e = threadIdx.x; e < TOGETHER * count; e += 32 * WARPS)
    queries[e / count][e % count] = in.phiQ[(own + e / count) * FEATURES + f0 + e % count];
  __syncthreads();
  float value[ACROSS], sum[TOGETHER][ACROSS] = {};
#pragma unroll
  for (int n = 0; n < ACROSS; n++) value[n] = lane + n * 32 < COLUMNS ? in.value[head * COLUMNS + lane + n * 32] : 0;
#pragma unroll 1
  for (int i = 0; i < STATES; i++) {
    const float fade = in.fades[((size_t)row * STATES + i) * KV_HEADS + kv];
    const size_t at = ((((size_t)row * STATES + i) * KV_HEADS + kv) * FEATURES + f0) * (COLUMNS + 1) + lane;
    float part[TOGETHER][ACROSS] = {};
    for (int from = warp; from < count; from += WARPS * AHEAD) {
      float s[AHEAD][ACROSS]; // loads before stores: the compiler may not change their order
#pragma unroll
      for (int m = 0; m < AHEAD; m++)
#pragma unroll
        for (int n = 0; n < ACROSS; n++) {
          const int f = from + m * WARPS;
          s[m][n] = f < count && lane + n * 32 < COLUMNS ? in.before[at + f * (COLUMNS + 1) + n * 32] : 0;
        }
#pragma unroll
      for (int m = 0; m < AHEAD; m++) {
        const int f = from + m * WARPS;
        if (f >= count) break;
#pragma unroll
        for (int n = 0; n < ACROSS; n++) {
          s[m][n] = s[m][n] * fade + key[f] * value[n];
          if (lane + n * 32 < COLUMNS) in.after[at + f * (COLUMNS + 1) + n * 32] = s[m][n];
#pragma unroll
          for (int h = 0; h < TOGETHER; h++) part[h][n] += queries[h][f] * s[m][n];
        }
      }
    }
#pragma unroll
    for (int h = 0; h < TOGETHER; h++)
#pragma unroll
      for (int n = 0; n < ACROSS; n++) sum[h][n] += gammaOf(in, kv * TOGETHER + h, i) * part[h][n];
  }
#pragma unroll
  for (int h = 0; h < TOGETHER; h++)
#pragma unroll
    for (int n = 0; n < ACROSS; n++)
      if (lane + n * 32 < COLUMNS) parts[warp][h][lane + n * 32] = sum[h][n];
  __syncthreads();
  for (int e = threadIdx.x; e < TOGETHER * COLUMNS; e += 32 * WARPS) {
    float total = 0;
    for (int w = 0; w < WARPS; w++) total += parts[w][e / COLUMNS][e % COLUMNS];
    in.parts[((own + e / COLUMNS) * SPLITS + blockIdx.x) * COLUMNS + e % COLUMNS] = total;
  }
}

/** o = exact + share times what the parts of the states sum up to. */
extern "C" __global__ void __launch_bounds__(128) join(ARGUMENTS) {
  GIVEN;
  const size_t own = (size_t)blockIdx.y * HEADS + blockIdx.x;
  const int c = threadIdx.x;
  if (c >= COLUMNS) return;
  float total = 0;
  for (int part = 0; part < SPLITS; part++) total += in.parts[(own * SPLITS + part) * COLUMNS + c];
  in.o[own * COLUMNS + c] = toHalf(in.exact[own * COLUMNS + c] + in.shares[own] * total);
}
`;
