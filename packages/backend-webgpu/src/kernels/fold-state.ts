import type { Rope } from '@dsla/spec';
import { elementwiseSize } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';
import { featuresAThread, ropeBuffer, ropeEights, ropeFunctions, turnEights } from './rope.js';

/** k (with a rope its rotation undone) and v [tokens, kvHeads*headDim] out of a cache [slots, kvHeads, tokens, headDim]; info[0] = tokens; featuresAThread at a time. */
export function replayCache(kvHeads: number, headDim: number, type: Element, rope?: Rope): Kernel {
  const width = kvHeads * headDim;
  if (featuresAThread(rope, headDim, type) === 8) return replayEights(kvHeads, headDim, rope);
  const key = rope ? 'turn(f32(keys[base + c]), f32(keys[base + partner(c)]), c, token.z, -1.0)' : 'keys[base + c]';
  return kernel({
    name: 'replay-cache',
    buffers: {
      keys: [type, 'read'],
      values: [type, 'read'],
      ...(rope ? ropeBuffer : {}),
      info: ['u32', 'read'],
      k: [type, 'write'],
      v: [type, 'write'],
    },
    module: rope ? ropeFunctions(rope) : '',
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width}u) { return; }
  let token = token_at(i / ${width}u);
  let feature = i % ${width}u;
  let c = feature % ${headDim}u;
  let base = ((row_at(token.y).x * ${kvHeads}u + feature / ${headDim}u) * info[0] + token.z) * ${headDim}u;
  k[token.x * ${width}u + feature] = ${type}(${key});
  v[token.x * ${width}u + feature] = values[base + c];`,
  });
}

function replayEights(kvHeads: number, headDim: number, rope?: Rope): Kernel {
  const [eights, all] = [headDim / 8, (kvHeads * headDim) / 8];
  const key = rope
    ? 'turn_eight(keys[base + c / 8u], keys[base + partner(c) / 8u], c, token.z, -1.0)'
    : 'keys[base + c / 8u]';
  return kernel({
    name: 'replay-cache',
    buffers: {
      keys: ['vec4u', 'read'],
      values: ['vec4u', 'read'],
      ...(rope ? ropeEights : {}),
      info: ['u32', 'read'],
      k: ['vec4u', 'write'],
      v: ['vec4u', 'write'],
    },
    module: rope ? turnEights(rope) : '',
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${all}u) { return; }
  let token = token_at(i / ${all}u);
  let c = i % ${eights}u * 8u;
  let base = ((row_at(token.y).x * ${kvHeads}u + i % ${all}u / ${eights}u) * info[0] + token.z) * ${eights}u;
  let at = token.x * ${all}u + i % ${all}u;
  k[at] = ${key};
  v[at] = values[base + c / 8u];`,
  });
}
