import type { NodeOf, Rope } from '@dsla/spec';
import {
  type Builder,
  longOnly,
  type Operand,
  partOf,
  perElement,
  result,
  ropeRef,
  sourceOf,
  vector,
} from './builder.js';
import { append, keep, keepGroups, keepTokens, type Window } from './kernels/cache.js';
import {
  causalConv,
  convGroups,
  convSize,
  convState,
  convTileable,
  convTiles,
  convToken,
} from './kernels/causal-conv.js';
import { copy, elementsAThread } from './kernels/elementwise.js';
import type { Element, Grid } from './kernels/kernel.js';
import { featuresAThread, rotate } from './kernels/rope.js';
import { type ScanOperand, type ScanShape, scanGroups, selectiveScan } from './kernels/selective-scan.js';
import { type AttentionShape, cachedAttention, type Join, windowAttention } from './kernels/softmax-attention.js';
import { headsTogether, splitAttention, splitGroups, splittable } from './kernels/split-attention.js';
import { partsWidth } from './kernels/split-join.js';
import { tileAttention, tileable, tileWindow } from './kernels/tile-attention.js';
import { wideAttention, wideTileable } from './kernels/wide-attention.js';
import type { BufferRef } from './program.js';
import type { View } from './view.js';

export function lowerAttention(builder: Builder, node: NodeOf<'softmaxAttention'>): Operand {
  const { operand } = builder;
  const { heads, headDim, window, state } = node;
  const [q, k, v] = [operand(node.q), operand(node.k), operand(node.v)];
  const y = result(builder, heads * headDim, 'token');
  const [keys, values] = [statePart(state, 0), statePart(state, 1)];
  if (!window) {
    lowerCached(builder, node, { q, k, v: v.ref, keys, values }, y);
    return y;
  }
  const own = turned(builder, node, k);
  lowerWindow(builder, node, window, { q, k: own.ref, v: v.ref, keys, values }, y);
  emitKeep(builder, node, window, { k: own, v: v.ref }, [keys, values]);
  return y;
}

type HeadShape = Pick<AttentionShape, 'kvHeads' | 'headDim'>;

/** What a ring takes in; `rope` where keys have not been turned yet. */
interface Kept {
  readonly k: Operand;
  readonly v: BufferRef;
  readonly gates?: Operand | undefined;
  readonly rope?: Rope | undefined;
}

/** Writes keys and values of the tokens into their rings, once nobody reads the old content any more. */
function emitKeep(builder: Builder, shape: HeadShape, window: Window, kept: Kept, rings: readonly BufferRef[]): void {
  const { kvHeads, headDim } = shape;
  const tokens = perElement(kept.k);
  const short = (view: View): Grid => (view.singles === 0 ? [0, 0, 0] : tokens(view));
  builder.emit(keepTokens(kvHeads, headDim, window, builder.type), [kept.k.ref, kept.v, ...rings], short);
  emitKeepMany(builder, shape, window, kept, rings);
}

/** As emitKeep, of the tokens of long rows only; also their gates. */
export function emitKeepMany(
  { emit, type }: Builder,
  { kvHeads, headDim }: HeadShape,
  window: Window,
  { k, v, gates, rope }: Kept,
  rings: readonly BufferRef[],
  replay = false,
): void {
  const long =
    (heads: number, width: number) =>
    ({ rows, tiles }: View): Grid =>
      tiles === 0 ? [0, 0, 0] : [keepGroups(heads, width, window), rows, 1];
  const [keys, values, gateRing] = rings as [BufferRef, BufferRef, BufferRef?];
  const all = long(kvHeads, headDim);
  emit(keep(kvHeads, headDim, window, type, k.type, rope), [k.ref, ...ropeRef(rope), keys], all, replay);
  emit(keep(kvHeads, headDim, window, type, type), [v, values], all, replay);
  if (gates && gateRing)
    emit(keep(1, gates.width, window, 'f32', type), [gates.ref, gateRing], long(1, gates.width), replay);
}

/**
 * Short rows split over the cache, which takes in their tokens at the same time; long rows in tiles, where the device and the
 * head width allow it.
 */
function lowerCached(
  builder: Builder,
  node: NodeOf<'softmaxAttention'>,
  { q, k, v, keys, values }: Omit<WindowParts, 'k'> & { readonly k: Operand },
  y: Operand,
): void {
  const { type, traits, emit } = builder;
  const { heads, kvHeads, headDim, rope, state } = node;
  const ropes = ropeRef(rope);
  const info: BufferRef = { kind: 'info', state };
  const split = splittable(node, type, traits.lanes);
  const all = perElement(k, featuresAThread(rope, headDim, type));
  const appended = (view: View): Grid => (split && view.tiles === 0 ? [0, 0, 0] : all(view));
  emit(append(kvHeads, headDim, type, k.type, rope), [k.ref, v, ...ropes, info, keys, values], appended);
  if (split) {
    const parts: BufferRef = { kind: 'parts', width: partsWidth(node, headsTogether(node)) };
    const groups = splitGroups(node);
    const kernel = splitAttention(node, type, { q: q.type, k: k.type }, traits.lanes, traits.threads);
    emit(kernel, [q.ref, k.ref, v, ...ropes, info, keys, values, parts, y.ref], (view) => [view.splits, groups, 1]);
  }
  const cache = [keys, values, info];
  if (split && traits.matrices && (tileable(node) || wideTileable(node))) {
    const queries = turned(builder, node, q, longOnly);
    const kernel = tileable(node) ? tileAttention(node, traits.attention) : wideAttention(node);
    emit(kernel, [queries.ref, ...cache, y.ref], (view) => [view.tiles, heads, 1]);
    return;
  }
  const some = (view: View): Grid => (split && view.tiles === 0 ? [0, 0, 0] : [view.tokens, heads, 1]);
  emit(cachedAttention(node, type, q.type, split), [q.ref, ...ropes, ...cache, y.ref], some);
}

/** Keys (turned) and values of the step and of the ring. */
interface WindowParts {
  readonly q: Operand;
  readonly k: BufferRef;
  readonly v: BufferRef;
  readonly keys: BufferRef;
  readonly values: BufferRef;
}

/**
 * Long rows in tiles, where device and head width allow it. With `join` only long rows, joined with the sums of a dual state.
 */
export function lowerWindow(
  builder: Builder,
  shape: AttentionShape,
  window: Window,
  { q, k, v, keys, values }: WindowParts,
  y: Operand,
  join?: Join & { readonly buffers: readonly BufferRef[]; readonly norm: readonly BufferRef[] },
): void {
  const { emit, type, traits } = builder;
  const { heads, rope } = shape;
  const tiled = traits.matrices && tileable(shape) && !join?.outputNorm;
  const joined = join ? [...join.buffers, ...join.norm] : [];
  const some = ({ tokens, tiles, singles }: View): Grid => {
    const wanted = join ? tiles > 0 : !tiled || singles > 0;
    return wanted ? [tokens, heads, 1] : [0, 0, 0];
  };
  const buffers = [q.ref, ...ropeRef(rope), k, v, keys, values, ...joined, y.ref];
  if (!tiled || !join) emit(windowAttention(shape, window, type, q.type, join, tiled), buffers, some);
  if (!tiled) return;
  const queries = turned(builder, shape, q, longOnly);
  const kernel = tileWindow(shape, window, join !== undefined, traits.attention);
  emit(kernel, [queries.ref, k, v, keys, values, ...joined, y.ref], ({ tiles }) => [tiles, heads, 1]);
}

/**
 * Queries or keys of the step, or of a replay, after rotation and in the compute type, in the views that `only` leaves: x itself
 * where that is what it is.
 */
export function turned(
  { type, temp, emit }: Builder,
  { headDim, rope }: Pick<AttentionShape, 'headDim' | 'rope'>,
  x: Operand,
  only: (grid: (view: View) => Grid) => (view: View) => Grid = (grid) => grid,
  replay = false,
): Operand {
  if (!rope && x.type === type) return x;
  const { width, domain } = x;
  const y: Operand = { ref: temp(width, type, replay ? 'past' : 'token'), width, type, domain };
  const kernel = rope ? rotate(rope, headDim, y, x.type) : copy(domain, y, x);
  const together = rope ? featuresAThread(rope, headDim, type) : elementsAThread(y, x);
  emit(kernel, [x.ref, ...ropeRef(rope), y.ref], only(perElement(x, together)), replay);
  return y;
}

export function lowerConv(builder: Builder, node: NodeOf<'causalConv'>, fn?: NodeOf<'activate'>['fn']): Operand {
  const { type, emit } = builder;
  const x = builder.operand(node.x);
  const taps = builder.shapeOf(node.weight)[2]!;
  const y = result(builder, x.width, 'token');
  const state = statePart(node.state, 0);
  const weights = [vector(node.weight), ...(node.bias === undefined ? [] : [vector(node.bias)])];
  const bias = node.bias !== undefined;
  const all = perElement(y);
  if (taps > 1) {
    const each = (view: View): Grid => (view.ones ? all(view) : [0, 0, 0]);
    emit(convToken(y, x, taps, type, bias, fn), [x.ref, ...weights, state, y.ref], each);
  }
  const others =
    (grid: (view: View) => Grid) =>
    (view: View): Grid =>
      taps > 1 && view.ones ? [0, 0, 0] : grid(view);
  const tiled = convTileable(x, y);
  const some = others((view) => (tiled && view.singles === 0 ? [0, 0, 0] : all(view)));
  emit(causalConv(y, x, taps, type, bias, fn, tiled), [x.ref, ...weights, state, y.ref], some);
  const groups = convGroups(x);
  if (tiled)
    emit(convTiles(x, taps, type, bias, fn), [x.ref, ...weights, state, y.ref], ({ tiles }) => [groups, tiles, 1]);
  const channels = Math.ceil(x.width / convSize);
  if (taps > 1)
    emit(
      convState(x, taps, type),
      [x.ref, state],
      others(({ rows }) => [channels, rows, 1]),
    );
  return y;
}

/** `gate`: f of z that the result is multiplied by. */
export function lowerScan(
  builder: Builder,
  node: NodeOf<'selectiveScan'>,
  gate?: { readonly fn: NodeOf<'activate'>['fn']; readonly z: Operand },
): Operand {
  const { operand, emit, type } = builder;
  const [x, dt, b, c] = [operand(node.x), operand(node.dt), operand(node.b), operand(node.c)];
  const sources = new Map<BufferRef, { readonly index: number; readonly type: Element }>();
  const partsOf = ({ joint, ...whole }: Operand): ScanOperand => {
    const parts = (joint?.parts ?? [whole]).map((part) => {
      const ref = sourceOf(part);
      const source = sources.get(ref) ?? { index: sources.size, type: part.type };
      sources.set(ref, source);
      return { ...partOf(part), source: source.index };
    });
    return { parts, fn: joint?.fn };
  };
  const operands = { dt: partsOf(dt), b: partsOf(b), c: partsOf(c) };
  const n = builder.shapeOf(node.logA)[2]!;
  const shape: ScanShape = {
    heads: node.heads,
    channels: x.width,
    n,
    type,
    sources: [...sources.values()].map((source) => source.type),
    ...operands,
    gate: gate && { fn: gate.fn, type: gate.z.type },
  };
  const y = result(builder, x.width, 'token');
  const sourced = [x.ref, ...sources.keys(), vector(node.logA), vector(node.d), ...(gate ? [gate.z.ref] : [])];
  const groups = scanGroups(shape);
  emit(selectiveScan(shape), [...sourced, y.ref, statePart(node.state, 0)], ({ rows }) => [groups, rows, 1]);
  return y;
}

export function statePart(state: string, part: number): BufferRef {
  return { kind: 'state', state, part };
}
