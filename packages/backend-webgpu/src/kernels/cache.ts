import type { Rope } from '@dsla/spec';
import { elementwiseSize } from './elementwise.js';
import { type Element, type Kernel, kernel, shortRow } from './kernel.js';
import { eightFunctions } from './matrices.js';
import { eightAt, featuresAThread, ropeBuffer, ropeEights, ropeFunctions, turnEights, turnedEightAt } from './rope.js';
import { loadType } from './vector-options.js';

export interface Window {
  readonly size: number;
  readonly sinks: number;
}

/** WGSL of ringIndex: where token j lies in a ring of sinks + size entries. */
export function ringFunction({ size, sinks }: Window): string {
  return `fn ring_index(j: u32) -> u32 { return select(${sinks}u + (j - ${sinks}u) % ${size}u, j, j < ${sinks}u); }`;
}

/**
 * Keys (of type `k`, turned here) and values of the new tokens into a cache [slots, kvHeads, tokens, headDim]; info[0] = tokens;
 * featuresAThread at a time.
 */
export function append(kvHeads: number, headDim: number, type: Element, k: Element, rope?: Rope): Kernel {
  const width = kvHeads * headDim;
  if (featuresAThread(rope, headDim, type) === 8) return appendEights(kvHeads, headDim, k, rope);
  const key = rope ? 'turn(f32(k[at]), f32(k[at - c + partner(c)]), c, token.z, 1.0)' : 'k[at]';
  return kernel({
    name: 'append',
    buffers: {
      k: [k, 'read'],
      v: [type, 'read'],
      ...(rope ? ropeBuffer : {}),
      info: ['u32', 'read'],
      keys: [type, 'write'],
      values: [type, 'write'],
    },
    module: rope ? ropeFunctions(rope) : '',
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width}u) { return; }
  let token = token_at(i / ${width}u);
  let row = row_at(token.y);
  let feature = i % ${width}u;
  let c = feature % ${headDim}u;
  let at = token.x * ${width}u + feature;
  let entry = ((row.x * ${kvHeads}u + feature / ${headDim}u) * info[0] + token.z) * ${headDim}u + c;
  keys[entry] = ${type}(${key});
  values[entry] = v[at];`,
  });
}

function appendEights(kvHeads: number, headDim: number, k: Element, rope?: Rope): Kernel {
  const [eights, all] = [headDim / 8, (kvHeads * headDim) / 8];
  return kernel({
    name: 'append',
    buffers: {
      k: [loadType(k), 'read'],
      v: ['vec4u', 'read'],
      ...(rope ? ropeEights : {}),
      info: ['u32', 'read'],
      keys: ['vec4u', 'write'],
      values: ['vec4u', 'write'],
    },
    module: rope ? turnEights(rope) : eightFunctions,
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${all}u) { return; }
  let token = token_at(i / ${all}u);
  let c = i % ${eights}u * 8u;
  let at = token.x * ${all}u + i % ${all}u;
  let base = at - c / 8u;
  let head = row_at(token.y).x * ${kvHeads}u + i % ${all}u / ${eights}u;
  let entry = (head * info[0] + token.z) * ${eights}u + c / 8u;
  keys[entry] = ${rope ? turnedEightAt('k', k, 'base', 'token.z') : eightAt('k', k, 'at')};
  values[entry] = v[at];`,
  });
}

/** Threads of a row that keep needs: one an element of a slot. */
export function keepGroups(heads: number, width: number, { size, sinks }: Window): number {
  return Math.ceil((heads * (sinks + size) * width) / elementwiseSize);
}

/**
 * x [tokens, heads*width] into a ring [slots, heads, sinks + size, width]: the tokens that are still in it after the step, with
 * a rope after rotation. Every entry of the ring looks for its token: [keepGroups, rows, 1].
 */
export function keep(
  heads: number,
  width: number,
  { size, sinks }: Window,
  ring: Element,
  x: Element,
  rope?: Rope,
): Kernel {
  const entries = sinks + size;
  const value = rope ? 'turn(f32(x[at]), f32(x[at - c + partner(c)]), c, j, 1.0)' : 'x[at]';
  return kernel({
    name: 'keep',
    buffers: { x: [x, 'read'], ...(rope ? ropeBuffer : {}), ring: [ring, 'write'] },
    module: rope ? ropeFunctions(rope) : '',
    size: elementwiseSize,
    main: `  let e = group.x * ${elementwiseSize}u + lane;
  let row = row_at(group.y);
  if (e >= ${heads * entries * width}u || row.w == 0u) { return; }
  let c = e % ${width}u;
  let entry = e / ${width}u % ${entries}u;
  let last = row.y + row.w - 1u;
  var j = entry;
  if (entry >= ${sinks}u) {
    if (last < entry) { return; }
    j = last - (last - entry) % ${size}u;
  }
  if (j < row.y || j > last) { return; }
  let at = (row.z + j - row.y) * ${heads * width}u + e / ${entries * width}u * ${width}u + c;
  ring[row.x * ${heads * entries * width}u + e] = ${ring}(${value});`,
  });
}

/**
 * The tokens of short rows into rings of keys and values, one thread a feature of a token: as `keep` does for long rows, whose
 * rings have more entries than the step has tokens.
 */
export function keepTokens(kvHeads: number, headDim: number, window: Window, type: Element): Kernel {
  const width = kvHeads * headDim;
  const entries = window.sinks + window.size;
  return kernel({
    name: 'keep-tokens',
    buffers: { k: [type, 'read'], v: [type, 'read'], keys: [type, 'write'], values: [type, 'write'] },
    module: ringFunction(window),
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${width}u) { return; }
  let token = token_at(i / ${width}u);
  let row = row_at(token.y);
  // Later tokens of the step may take the entry.
  let taken = token.z >= ${window.sinks}u && token.z + ${window.size}u < row.y + row.w;
  if (row.w > ${shortRow}u || taken) { return; }
  let feature = i % ${width}u;
  let at = token.x * ${width}u + feature;
  let head = row.x * ${kvHeads}u + feature / ${headDim}u;
  let to = (head * ${entries}u + ring_index(token.z)) * ${headDim}u + feature % ${headDim}u;
  keys[to] = k[at];
  values[to] = v[at];`,
  });
}
