import type { DualForm } from '@dsla/spec';
import type { Operator } from './operator.js';

// What a cache holds, as a prompt would bring it.

/**
 * Inputs: keys and values of a cache [g, entries, hd], int64 tokens [1, T], int64 count [1], with a rope tables of cosines and sines.
 * Outputs: keys without their rotation, values and, with a rope that is in the states, keys as they are: [1, T, g*hd], 0 from the
 * count-th on.
 */
export function replayOperator({ kvHeads, headDim, rope, ropeInState }: DualForm): Operator {
  const turned = rope?.rotaryDim ?? 0;
  const both = rope !== undefined && ropeInState;
  const cache = { type: 'float16', dims: [kvHeads, 'entries', headDim] } as const;
  const row = { type: 'float16', dims: [1, 'tokens', kvHeads * headDim] } as const;
  const table = { type: 'float', dims: ['positions', turned / 2] } as const;
  const threads = 256;
  return {
    name: `Replay ${kvHeads} ${headDim} ${turned} ${both}`,
    inputs: [
      cache,
      cache,
      { type: 'int64', dims: [1, 'tokens'] },
      { type: 'int64', dims: [1] },
      ...(rope ? [table, table] : []),
    ],
    outputs: [row, row, ...(both ? [row] : [])],
    source: `
#define HEADS ${kvHeads}
#define WIDTH ${headDim}
#define TURNED ${turned}
extern "C" __global__ void replay(const half_t *keys, const half_t *values, const long long *positions, const long long *count,
    ${rope ? 'const float *cosines, const float *sines, ' : ''}half_t *plain, half_t *v, ${both ? 'half_t *k, ' : ''}int entries, int tokens${rope ? ', int tableRows' : ''}) {
  const size_t i = ((size_t)blockIdx.x * ${threads} + threadIdx.x) * 8;
  if (i >= (size_t)tokens * HEADS * WIDTH) return;
  const int t = i / (HEADS * WIDTH), head = i / WIDTH % HEADS, c = i % WIDTH;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  const bool there = t < count[0];
  const long long position = there ? positions[t] : 0;
  const size_t row = ((size_t)head * entries + position) * WIDTH;
  *(uint4 *)(v + i) = there ? *(const uint4 *)(values + row + c) : zero;
  uint4 own = there ? *(const uint4 *)(keys + row + c) : zero;
${both ? '  *(uint4 *)(k + i) = own;' : ''}
${rope ? turnBack : ''}
  *(uint4 *)(plain + i) = own;
}
`,
    launches: [
      { kernel: 'replay', grid: [{ blocks: { times: ['tokens', (kvHeads * headDim) / 8] }, by: threads }], threads },
    ],
  };
}

const turnBack = `
  for (int j = 0; there && j < 8 && c + j < TURNED; j++) {
    const int pair = (c + j) % (TURNED / 2);
    const float cosine = cosines[position * (TURNED / 2) + pair], sine = sines[position * (TURNED / 2) + pair];
    const float first = toFloat(keys[row + pair]), second = toFloat(keys[row + pair + TURNED / 2]);
    ((half_t *)&own)[j] = toHalf(c + j < TURNED / 2 ? first * cosine + second * sine : second * cosine - first * sine);
  }`;
