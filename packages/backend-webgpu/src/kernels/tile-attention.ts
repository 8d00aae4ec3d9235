import { ringFunction, type Window } from './cache.js';
import {
  type AttentionCut,
  attentionCut,
  flashAttention,
  keysOfBlock as keys,
  type TileSource,
} from './flash-attention.js';
import { type Kernel, tileTokens, upTo } from './kernel.js';

import type { AttentionShape } from './softmax-attention.js';

/** Head widths whose tiles fit the workgroup memory. */
export function tileable({ headDim }: AttentionShape): boolean {
  return headDim % 16 === 0 && headDim <= 128;
}

/**
 * Attention of long rows in float16 by subgroup matrices: 64 queries of one head a workgroup over blocks of keys. For the softmax
 * a query has four lanes. q [tokens, heads*headDim] is turned already; cache [slots, kvHeads, tokens, headDim]. The running maximum
 * moves only when it is passed by more than 2^8, so that the sums seldom leave their registers to be scaled.
 */
export function tileAttention(shape: AttentionShape, cut: AttentionCut = attentionCut): Kernel {
  const { kvHeads, headDim } = shape;
  const source: TileSource = {
    name: 'tile-attention',
    buffers: { keys: ['vec4u', 'read'], values: ['vec4u', 'read'], info: ['u32', 'read'] },
    module: '',
    blocks: `  let blocks = (visible + ${keys - 1}u) / ${keys}u;
  let cache = (row.x * ${kvHeads}u + kv) * info[0];`,
    first: (b) => `(${b}) * ${keys}u`,
    eight: (of, key, eight) => `${of}[(cache + ${key}) * ${headDim / 8}u + ${eight}]`,
    masked: `b * ${keys}u + ${keys}u > position + 1u`,
    seen: (keys, at) => `${keys} <= vec4u(${at})`,
    finish: (r) => `  shrink[query${r}] = 1.0 / total${r};`,
    added: () => 'vec4f()',
  };
  return flashAttention(shape, source, cut);
}

/**
 * As windowAttention of softmax-attention.ts, for long rows: of a tile the window is two or three blocks, the sinks are one
 * more. With `join` also joined with the sums of a dual state.
 */
export function tileWindow(
  shape: AttentionShape,
  window: Window,
  join: boolean,
  cut: AttentionCut = attentionCut,
): Kernel {
  const { heads, kvHeads, headDim } = shape;
  const entries = window.sinks + window.size;
  const eights = headDim / 8;
  const source: TileSource = {
    name: join ? 'tile-window-join' : 'tile-window',
    buffers: {
      k: ['vec4u', 'read'],
      v: ['vec4u', 'read'],
      keys: ['vec4u', 'read'],
      values: ['vec4u', 'read'],
      ...(join ? { sums: ['f32', 'read'] as const, log_weight: ['f32', 'read'] as const } : {}),
    },
    module: `${ringFunction(window)}
${(['keys', 'values'] as const)
  .map(
    (
      of,
    ) => `// In the ring or among the tokens of this step; both are loaded, since a load in a branch waits for the one before.
fn ${of}_at(j: u32, row: vec4u, kv: u32, eight: u32) -> vec4u {
  let old = j < row.y;
  let kept = ${of}[((row.x * ${kvHeads}u + kv) * ${entries}u + select(0u, ring_index(j), old)) * ${eights}u + eight];
  let fresh = ${of[0]}[((row.z + select(j - row.y, 0u, old)) * ${kvHeads}u + kv) * ${eights}u + eight];
  return select(fresh, kept, old);
}`,
  )
  .join('\n')}
${join ? `var<workgroup> shares: array<f32, ${tileTokens}>;` : ''}`,
    blocks: `  let low = u32(max(i32(position) - ${window.size - 1}, 0));
  let sinks = min(${window.sinks}u, low);
  let before = (sinks + ${keys - 1}u) / ${keys}u; // blocks of sinks
  let blocks = before + (visible - low + ${keys - 1}u) / ${keys}u;
${join ? '  let share = exp(log_weight[head]);' : ''}`,
    first: (b) => `select(low + (${b} - before) * ${keys}u, (${b}) * ${keys}u, ${b} < before)`,
    eight: (of, key, eight) => `${of}_at(${key}, row, kv, ${eight})`,
    masked: 'true',
    seen: (keys, at) =>
      `(${keys} < vec4u(select(visible, sinks, b < before))) & (${keys} <= vec4u(${at})) & ((${keys} + ${window.size}u > vec4u(${at})) | (${keys} < vec4u(${window.sinks}u)))`,
    finish: (r) =>
      join
        ? `  let factor${r} = exp2(top${r} - peak${r});
  let sum${r} = ((first + min(query${r}, tile.z - 1u)) * ${heads}u + head) * ${headDim + 1}u + ${headDim}u;
  let divisor${r} = total${r} * factor${r} + share * sums[sum${r}];
  shrink[query${r}] = factor${r} / divisor${r};
  shares[query${r}] = share / divisor${r};`
        : `  shrink[query${r}] = 1.0 / total${r};`,
    added: (r, c) => {
      const at = `((first + ${r}) * ${heads}u + head) * ${headDim + 1}u + ${c}`;
      const four = upTo(4).map((e) => `sums[${at} + ${e}u]`);
      return join ? `vec4f(${four.join(', ')}) * shares[${r}]` : 'vec4f()';
    },
  };
  return flashAttention(shape, source, cut);
}
