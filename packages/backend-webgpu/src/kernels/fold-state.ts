import type { Rope } from '@dsla/spec';
import { elementwiseSize } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';
import { inWords, ropeBuffer, ropeFunctions, turnWord } from './rope.js';

/** k (with a rope its rotation undone) and v [tokens, kvHeads*headDim] out of a cache [slots, kvHeads, tokens, headDim]; info[0] = tokens. */
export function replayCache(kvHeads: number, headDim: number, type: Element, rope?: Rope): Kernel {
  const width = kvHeads * headDim;
  if (type === 'f16' && headDim % 2 === 0 && (!rope || inWords(rope, headDim)))
    return replayWords(width, headDim, rope);
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

/** Two neighbours a thread: half of the threads have nothing to do. */
function replayWords(width: number, headDim: number, rope?: Rope): Kernel {
  const words = width / 2;
  const other = 'unpack2x16float(keys[(base + partner(c)) / 2u])';
  const key = rope
    ? `pack2x16float(${turnWord('unpack2x16float(keys[(base + c) / 2u])', other, 'token.z', '-1.0')})`
    : 'keys[(base + c) / 2u]';
  return kernel({
    name: 'replay-cache',
    buffers: {
      keys: ['u32', 'read'],
      values: ['u32', 'read'],
      ...(rope ? ropeBuffer : {}),
      info: ['u32', 'read'],
      k: ['u32', 'write'],
      v: ['u32', 'write'],
    },
    module: rope ? ropeFunctions(rope) : '',
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${words}u) { return; }
  let token = token_at(i / ${words}u);
  let feature = i % ${words}u * 2u;
  let c = feature % ${headDim}u;
  let base = ((row_at(token.y).x * ${width / headDim}u + feature / ${headDim}u) * info[0] + token.z) * ${headDim}u;
  let at = (token.x * ${width}u + feature) / 2u;
  k[at] = ${key};
  v[at] = values[(base + c) / 2u];`,
  });
}
