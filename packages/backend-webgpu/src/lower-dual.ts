import { featureWidth, gateWidth, type NodeOf, type Weight } from '@dsla/spec';
import { type Builder, longOnly, matrix, type Operand, perElement, result, ropeRef, vector } from './builder.js';
import { dualArrive } from './kernels/dual-arrive.js';
import { chunkScores, chunkWalk, cumulate } from './kernels/dual-chunks.js';
import { dualJoin } from './kernels/dual-join.js';
import * as dual from './kernels/dual-linear-attention.js';
import * as chunks from './kernels/dual-matrices.js';
import { chunkOutputs } from './kernels/dual-outputs.js';
import { recordLayout } from './kernels/dual-record.js';
import { featureTileable, featureTiles } from './kernels/feature-tiles.js';
import { replayCache } from './kernels/fold-state.js';
import { chunkTokens, type Grid, tileTokens } from './kernels/kernel.js';
import { recur, recurParts } from './kernels/recur.js';
import { featuresAThread } from './kernels/rope.js';
import { scoreTiles } from './kernels/score-tiles.js';
import { emitLinear } from './lower-linear.js';
import { emitKeepMany, lowerWindow, statePart, turned } from './lower-state.js';
import type { BufferRef } from './program.js';
import type { View } from './view.js';

interface Stream {
  readonly k: Operand;
  /** k after rotation, with which an exact part goes on. */
  readonly kept?: Operand | undefined;
  readonly v: Operand;
  readonly gates: Operand;
}

export function lowerDual(builder: Builder, node: NodeOf<'dualLinearAttention'>): Operand {
  const { operand, emit } = builder;
  const { heads, form, outputNorm } = node;
  const shape = shapeOf(builder, node, heads);
  const stream = { k: operand(node.k), v: operand(node.v), gates: operand(node.gates) };
  const q = operand(node.q);
  const y = result(builder, heads * form.headDim, 'token');
  lowerShort(builder, shape, stream, node.state, { node, q, y: y.ref });
  const kept = form.exact && turned(builder, form, stream.k, longOnly);
  const entered = lowerEntering(builder, shape, { ...stream, kept }, node.state, false);
  const phi = lowerQueries(builder, shape, q);
  const sums = builder.temp(heads * dual.columnsOf(form), 'f32');
  // What has neither a normaliser nor a norm is finished by the chunked kernels themselves.
  const own =
    inMatrices(builder, shape) && !form.normaliser && !outputNorm ? { y: y.ref, scale: node.scale } : undefined;
  lowerStates(builder, shape, entered, node.state, { phi, mix: node.mix, sums, own });
  if (own) return y;
  const norm = outputNorm ? [vector(outputNorm.weight)] : [];
  if (!form.exact || !kept) {
    const kernel = dual.finish(shape, node.scale, outputNorm);
    emit(
      kernel,
      [sums, ...norm, y.ref],
      longOnly(({ tokens }) => [tokens, heads, 1]),
    );
    return y;
  }
  const window = { size: form.exact.window, sinks: form.exact.sinks };
  const attention = { heads, kvHeads: form.kvHeads, headDim: form.headDim, scale: node.scale, rope: form.rope };
  const [keys, values] = [statePart(node.state, 1), statePart(node.state, 2)];
  const parts = { q, k: kept.ref, v: stream.v.ref, keys, values };
  const join = { outputNorm, buffers: [sums, vector(form.exact.logWeight)], norm };
  lowerWindow(builder, attention, window, parts, y, join);
  keepExact(builder, shape, { ...stream, k: kept }, node.state, false, false);
  return y;
}

/** Replays the cache: its tokens come anew into a state of zeros. */
export function lowerFold(builder: Builder, node: NodeOf<'foldState'>): void {
  const { emit, type } = builder;
  const { form } = node;
  const { rope, ...unturned } = form;
  const { kvHeads, headDim } = form;
  const shape = shapeOf(builder, node, kvHeads);
  const past = (width: number): Operand => ({ ref: builder.temp(width, type, 'past'), width, type, domain: 'token' });
  const [k, v, gates] = [past(kvHeads * headDim), past(kvHeads * headDim), past(gateWidth(form))];
  const info: BufferRef = { kind: 'info', state: node.from };
  // A cache holds turned keys. They stay so where the state takes them so and nothing else wants them as they were.
  const asCached = form.ropeInState && node.gateSource !== 'key';
  const undone = asCached ? undefined : rope;
  const cache = [statePart(node.from, 0), statePart(node.from, 1), ...ropeRef(undone), info];
  emit(
    replayCache(kvHeads, headDim, type, undone),
    [...cache, k.ref, v.ref],
    perElement(k, featuresAThread(undone, headDim, type)),
    true,
  );
  const gating = { weight: node.gateWeight, bias: node.gateBias, y: gates };
  emitLinear(builder, node.gateSource === 'key' ? k : v, [gating], true);
  const stream = { k, v, gates };
  const taken = asCached ? { ...shape, form: { ...form, ropeInState: false } } : shape;
  const arriving = asCached ? { ...shape, form: { ...unturned, ropeInState: false } } : shape;
  lowerShort(builder, arriving, stream, node.to);
  const entered = lowerEntering(builder, taken, stream, node.to, true);
  lowerStates(builder, shape, entered, node.to);
  if (form.exact) keepExact(builder, shape, stream, node.to, !asCached, true);
}

/** What is read of the states of short rows. */
interface Reading {
  readonly node: NodeOf<'dualLinearAttention'>;
  readonly q: Operand;
  readonly y: BufferRef;
}

/** The tokens of short rows, one after the other; without `reading` a replay, from zero. */
function lowerShort(
  builder: Builder,
  shape: dual.DualShape,
  { k, v, gates }: Stream,
  state: string,
  reading?: Reading,
): void {
  const { emit, temp, traits } = builder;
  const { form } = shape;
  const { featureMap, rope, exact, kvHeads } = form;
  const replay = reading === undefined;
  const record = temp(kvHeads * recordLayout(shape, replay).length, 'f32', replay ? 'past' : 'short');
  // A replay also clears the states of rows without tokens.
  const each = ({ rows, singles }: View): Grid => (replay || singles > 0 ? [rows, kvHeads, 1] : none);
  const query = reading ? [reading.q.ref] : [];
  const maps = featureMap
    ? [matrix(builder, featureMap.key), ...(replay ? [] : [matrix(builder, featureMap.query)])]
    : [];
  const rings = exact ? [1, 2, 3].map((part) => statePart(state, part)) : [];
  const arriving = [...query, k.ref, v.ref, gates.ref, ...maps, ...ropeRef(rope), ...rings, record];
  const types = { q: reading?.q.type ?? k.type, k: k.type };
  emit(dualArrive(shape, reading?.node.scale ?? 1, replay, types, traits.threads), arriving, each, replay);
  const target = statePart(state, 0);
  const parts = recurParts(shape, traits.threads);
  const perPart = (view: View): Grid => (each(view) === none ? none : [view.rows, kvHeads, parts]);
  if (!reading) {
    emit(recur(shape, false, true, traits.threads), [record, target], perPart, true);
    return;
  }
  const { mix, outputNorm } = reading.node;
  const sums = temp(shape.heads * parts * dual.columnsOf(form), 'f32', 'short');
  const perHead = builder.shapeOf(mix)[0]! > 1;
  emit(recur(shape, perHead, false, traits.threads), [record, vector(mix), target, sums], perPart);
  const joined = exact ? [record, vector(exact.logWeight)] : [];
  const norm = outputNorm ? [vector(outputNorm.weight)] : [];
  const all = ({ tokens, singles }: View): Grid => (singles > 0 ? [tokens, shape.heads, 1] : none);
  emit(dualJoin(shape, parts, reading.node), [sums, ...joined, ...norm, reading.y], all);
}

const none: Grid = [0, 0, 0];

function inMatrices({ traits }: Builder, shape: dual.DualShape): boolean {
  return traits.matrices && chunks.chunkable(shape);
}

interface Queries {
  readonly phi: BufferRef;
  readonly mix: Weight;
  readonly sums: BufferRef;
  /** The result, if nothing is to be done to the sums of long rows but to scale them. */
  readonly own?: { readonly y: BufferRef; readonly scale: number } | undefined;
}

/** Moves the states of long rows on, in chunks. With queries also reads them, else it is a replay. */
function lowerStates(
  builder: Builder,
  shape: dual.DualShape,
  entered: Entered,
  state: string,
  queries?: Queries,
): void {
  const { emit, shapeOf } = builder;
  const { form } = shape;
  const replay = queries === undefined;
  const blocks = Math.ceil(dual.columnsOf(form) / dual.columnBlock);
  const perHead = queries !== undefined && shapeOf(queries.mix)[0]! > 1;
  const stream = [entered.phi, entered.v, entered.decay];
  const [phi, mix, sums] = queries ? [[queries.phi], [vector(queries.mix)], [queries.sums]] : [[], [], []];
  const target = statePart(state, 0);
  if (inMatrices(builder, shape)) {
    lowerMatrices(builder, shape, entered, target, queries);
    return;
  }
  const scores = queries ? [lowerScores(builder, shape, entered, queries)] : [];
  emit(
    chunkWalk(shape, perHead, replay),
    [...phi, ...stream, ...mix, ...scores, target, ...sums],
    longOnly(({ rows }) => [rows, form.kvHeads, blocks]),
    replay,
  );
}

/** As much as possible in products of matrices. */
function lowerMatrices(
  builder: Builder,
  shape: dual.DualShape,
  entered: Entered,
  target: BufferRef,
  queries?: Queries,
): void {
  const { emit, temp, shapeOf } = builder;
  const { form, heads } = shape;
  const { states, kvHeads } = form;
  const replay = queries === undefined;
  const vectors = form.gate === 'vector';
  const inner = queries && vectors ? [lowerScores(builder, shape, entered, queries)] : [];
  const width = chunks.chunkWidth(shape);
  const parts = temp(width, 'f32', 'chunk');
  const starts = temp(width, 'f16', 'chunk');
  const groups = chunks.statesGroups(shape);
  const { phi, v, decay } = entered;
  emit(chunks.chunkStates(shape), [phi, v, decay, parts], ({ tiles }) => [tiles, kvHeads, groups], replay);
  const elements = chunks.scanGroups(shape);
  const scan = ({ longs }: View): Grid => [longs, states * kvHeads, elements];
  emit(chunks.scanChunks(shape, replay), [decay, parts, ...(replay ? [] : [starts]), target], scan, replay);
  if (!queries) return;
  const { mix, sums, own } = queries;
  const kernel = chunkOutputs(shape, shapeOf(mix)[0]! > 1, own?.scale);
  const buffers = [queries.phi, phi, v, decay, vector(mix), starts, ...inner, own?.y ?? sums];
  emit(kernel, buffers, ({ tiles }) => [tiles, heads, 1]);
}

/** Scores of the queries of a tile and its own keys. */
function lowerScores(builder: Builder, shape: dual.DualShape, entered: Entered, { phi, mix }: Queries): BufferRef {
  const scores = builder.temp(shape.heads * tileTokens, 'f32');
  const make = inMatrices(builder, shape) ? scoreTiles : chunkScores;
  const kernel = make(shape, builder.shapeOf(mix)[0]! > 1);
  const buffers = [phi, entered.phi, entered.decay, vector(mix), scores];
  builder.emit(kernel, buffers, ({ tiles }) => [tiles, shape.heads, 1]);
  return scores;
}

/** What the states take in. */
interface Entered {
  readonly phi: BufferRef;
  readonly v: BufferRef;
  /** Log decays, summed from the start of the token's chunk or tile. */
  readonly decay: BufferRef;
}

/** Decays, values and features of the tokens of long rows that enter the states. */
function lowerEntering(
  builder: Builder,
  shape: dual.DualShape,
  { k, kept, v, gates }: Stream,
  state: string,
  replay: boolean,
): Entered {
  const { form, width } = shape;
  const { emit, type } = builder;
  const domain = replay ? 'past' : 'token';
  const ring = (part: number) => (form.exact ? [statePart(state, part)] : []);
  const decay = builder.temp(gateWidth(form), 'f32', domain);
  const rates = [gates.ref, ...ring(3), decay];
  const tokens = inMatrices(builder, shape) ? chunkTokens : `${tileTokens}u`;
  const columns = Math.ceil(gateWidth(form) / 64);
  emit(cumulate(shape, tokens), rates, ({ tiles }) => [columns, tiles, 1], replay);
  let entering = v.ref;
  if (form.exact) {
    entering = builder.temp(v.width, type, domain);
    const grid = perElement(v, dual.valuesAThread(shape));
    emit(dual.enteringValues(shape), [v.ref, ...ring(2), entering], longOnly(grid), replay);
  }
  if (!form.featureMap) return { phi: turnedInState(builder, shape, k, replay), v: entering, decay };
  const phi = builder.temp(form.kvHeads * width, type, domain);
  const ropes = form.rope && (form.ropeInState || form.exact) ? ropeRef(form.rope) : [];
  // A state takes in what ring and cache hold, keys rounded after rotation, so that one that is folded is the same.
  const [of, keys] = kept && form.rope ? (['turned-key', kept] as const) : (['key', kept ?? k] as const);
  emitFeatures(builder, shape, of, keys, [matrix(builder, form.featureMap.key), ...ropes, ...ring(1), phi], replay);
  return { phi, v: entering, decay };
}

function lowerQueries(builder: Builder, shape: dual.DualShape, q: Operand): BufferRef {
  const { form, heads, width } = shape;
  if (!form.featureMap) return turnedInState(builder, shape, q, false);
  const phi = builder.temp(heads * width, builder.type);
  const ropes = form.rope && form.ropeInState ? ropeRef(form.rope) : [];
  emitFeatures(builder, shape, 'query', q, [matrix(builder, form.featureMap.query), ...ropes, phi], false);
  return phi;
}

/** Features of the tokens of long rows, in tiles where the device and the widths allow it. */
function emitFeatures(
  { emit, traits }: Builder,
  shape: dual.DualShape,
  of: dual.FeaturesOf,
  x: Operand,
  buffers: readonly BufferRef[],
  replay: boolean,
): void {
  const count = of === 'query' ? shape.heads : shape.form.kvHeads;
  const tiled = traits.matrices && featureTileable(shape);
  const kernel = tiled ? featureTiles(shape, of, x.type) : dual.features(shape, of, x.type);
  const grid = longOnly(({ tokens }) => [tiled ? Math.ceil(tokens / tileTokens) : tokens, count, 1]);
  emit(kernel, [x.ref, ...buffers], grid, replay);
}

/** Without a feature map the state sees x itself, rotated where the form says so. */
function turnedInState(builder: Builder, { form }: dual.DualShape, x: Operand, replay: boolean): BufferRef {
  const { headDim, ropeInState } = form;
  return turned(builder, { headDim, rope: ropeInState ? form.rope : undefined }, x, longOnly, replay).ref;
}

/**
 * Writes the tokens of long rows that stay outside the states into the ring, once nobody reads its old content any more; keys
 * after rotation, with `turns` done here.
 */
function keepExact(
  builder: Builder,
  { form }: dual.DualShape,
  stream: Stream,
  state: string,
  turns: boolean,
  replay: boolean,
): void {
  const window = { size: form.exact!.window, sinks: form.exact!.sinks };
  const rings = [1, 2, 3].map((part) => statePart(state, part));
  const { k, v, gates } = stream;
  emitKeepMany(builder, form, window, { k, v: v.ref, gates, rope: turns ? form.rope : undefined }, rings, replay);
}

function shapeOf(
  builder: Builder,
  { form }: Pick<NodeOf<'dualLinearAttention'>, 'form'>,
  heads: number,
): dual.DualShape {
  const features = form.featureMap ? builder.shapeOf(form.featureMap.key)[1]! : undefined;
  return { heads, form, width: featureWidth(form, features), type: builder.type };
}
