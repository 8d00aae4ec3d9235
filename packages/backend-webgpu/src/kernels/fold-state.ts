import type { Rope } from '@dsla/spec';
import { elementwiseSize } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';
import { ropeBuffer, ropeFunctions } from './rope.js';

/** k (rotation undone) and v [tokens, kvHeads*headDim] out of a cache [slots, kvHeads, tokens, headDim]; info[0] = tokens. */
export function replayCache(kvHeads: number, headDim: number, type: Element, rope?: Rope): Kernel {
  const width = kvHeads * headDim;
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
