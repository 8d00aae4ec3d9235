import type { Weight } from '@dsla/spec';
import {
  type Builder,
  countOf,
  matrix,
  type Operand,
  partOf,
  perElement,
  perItem,
  result,
  sourceOf,
  vector,
} from './builder.js';
import { type Activation, accumulate, activateMul, elementsAThread, add as sum } from './kernels/elementwise.js';
import type { Domain, Grid } from './kernels/kernel.js';
import { linear } from './kernels/linear.js';
import { enoughGroups, linearMatrix, matrixGroups, matrixShape, smallShape } from './kernels/linear-matrix.js';
import { linearThin, thinGroups, thinItems, thinShape } from './kernels/linear-thin.js';
import { linearTiles, tileSize } from './kernels/linear-tiles.js';
import { linearVector, vectorGroups } from './kernels/linear-vector.js';
import { rmsNorm } from './kernels/norm.js';
import { dequantise, dequantiseGrid, type Format, isQuantised } from './kernels/quantise.js';
import type { VectorPart } from './kernels/vector-options.js';
import { hasVector, vectorItems, vectorShape } from './kernels/vector-shape.js';
import type { BufferRef } from './program.js';
import type { View } from './view.js';

// Which kernel a product gets depends on the number of items alone, so a row does not see its neighbours: all that may serve
// are recorded, those that do not fit get no workgroups. The kernels for a few items also take over the norm before and the
// addition after a product; for many items these are dispatches of their own.

/** y = x W^T + b, or y = add + x W^T + b. */
export interface Product {
  readonly weight: Weight;
  readonly bias?: Weight | undefined;
  readonly y: Operand;
  readonly add?: Operand | undefined;
  /** Of many items too it takes all of a norm, not what float16 has of it. */
  readonly exact?: boolean | undefined;
}

const none: Grid = [0, 0, 0];

/** At most as many items go to the kernels for vectors: more are for subgroup matrices; quantised matrices would be read too often. */
function fewItems({ traits }: Builder): number {
  if (traits.weights) return 8;
  return traits.matrices ? 4 : 64;
}

/** A grid for more than a few items. */
export function onlyMany(builder: Builder, domain: Domain, grid: (view: View) => Grid): (view: View) => Grid {
  return (view) => (countOf(view, domain) <= fewItems(builder) ? none : grid(view));
}

/** Products of the same x, for a few items by one kernel. `replay` as in Op. */
export function emitLinear(builder: Builder, x: Operand, products: readonly Product[], replay = false): void {
  const wide = products.every(({ y }) => hasVectors(builder, x, y.width));
  if (!wide && products.length > 1) {
    for (const product of products) emitLinear(builder, x, [product], replay);
    return;
  }
  if (wide) emitFew(builder, x, products, replay);
  emitMany(builder, x, products, replay);
}

/** Products of unlike x of one width, for a few items by one kernel where their matrices are not quantised. */
export function emitParallel(builder: Builder, products: readonly (Product & { readonly x: Operand })[]): void {
  const together = products.every(({ x, y }) => hasVectors(builder, x, y.width) && !x.normed);
  if (together) {
    const parts = products.map(({ x, y, bias }) => ({ x: partOf(x), y, bias: bias !== undefined }));
    const buffers = products.flatMap(({ x, weight, bias, y }) => [
      sourceOf(x),
      matrix(builder, weight, formatOf(builder, x)),
      ...(bias === undefined ? [] : [vector(bias)]),
      y.ref,
    ]);
    emitVectors(builder, products[0]!.x, parts, buffers);
  }
  for (const product of products) {
    if (together) emitMany(builder, product.x, [product]);
    else emitLinear(builder, product.x, [product]);
  }
}

/** y = f(x W^T) * (x U^T), by one kernel for a few items, and for more where there are subgroup matrices. */
export function emitGated(builder: Builder, x: Operand, y: Operand, fn: Activation, gate: Weight, up: Weight): void {
  const few = hasVectors(builder, x, y.width);
  const part = { y, bias: false, gate: fn };
  if (few) {
    const matrices = [gate, up].map((weight) => matrix(builder, weight, formatOf(builder, x)));
    emitVectors(builder, x, [part], [...matrices, y.ref]);
  }
  const only: Only = (grid) => (few ? onlyMany(builder, x.domain, grid) : grid);
  const factors = [gate, up].map((weight) => numbersOf(builder, x, weight, y.width, only, false));
  if (builder.traits.matrices && few) {
    emitThin(builder, x, [part], [...factors, y.ref], only, false);
    emitWhole(builder, x, part, [...factors, y.ref], false);
    return;
  }
  const products = factors.map((weights): Ready => ({ weights, y: result(builder, y.width, x.domain) }));
  for (const product of products) emitTiles(builder, x, product, only, false);
  const [a, b] = products.map((product) => product.y) as [Operand, Operand];
  const all = perElement(y, elementsAThread(y, a, b));
  builder.emit(activateMul(fn, x.domain, y, a, b), [a.ref, b.ref, y.ref], only(all));
}

/** Whether products of x with so many outputs have kernels for a few items. */
export function hasVectors(builder: Builder, x: Pick<Operand, 'width' | 'type'>, outputs: number): boolean {
  const { traits, type } = builder;
  if (x.width < narrow || outputs < narrow || traits.lanes === 0 || x.type !== type) return false;
  return hasVector(formatOf(builder, x), x);
}

/** Whether products of x with so many outputs can read it where it is a part, whatever the number of items. */
export function readsParts(builder: Builder, x: Pick<Operand, 'width' | 'type'>, outputs: number): boolean {
  return builder.traits.matrices && hasVectors(builder, x, outputs);
}

const narrow = 64;
/** Of so few outputs tiles of matrices leave a GPU idle. */
const fewOutputs = 512;

/** How the matrix of a product of x is stored. */
function formatOf({ traits, type }: Builder, x: Pick<Operand, 'width' | 'type'>): Format {
  return traits.weights && traits.lanes > 0 && hasVector(traits.weights, x) ? traits.weights : type;
}

function partOfProduct({ y, bias, add }: Omit<Product, 'weight'>): VectorPart {
  return { y, bias: bias !== undefined, add: add?.ref === y.ref ? 'own' : add };
}

/** Products of the same x for a few items; all must have such kernels. */
function emitFew(builder: Builder, x: Operand, products: readonly Product[], replay = false): void {
  const parts = products.map(partOfProduct);
  const format = formatOf(builder, x);
  const buffers = products.flatMap(({ weight, bias, add, y }) => [
    matrix(builder, weight, format),
    ...(bias === undefined ? [] : [vector(bias)]),
    ...(add && add.ref !== y.ref ? [add.ref] : []),
    y.ref,
  ]);
  emitVectors(builder, x, parts, buffers, replay);
}

/** For a few items; with `many` for more than those, up to so many. */
function emitVectors(
  builder: Builder,
  x: Operand,
  parts: readonly VectorPart[],
  buffers: readonly BufferRef[],
  replay = false,
  many?: number,
): void {
  const { traits, emit } = builder;
  const { domain, normed } = x;
  const last = normed?.x.last;
  const source = last ?? normed?.x ?? x;
  const sources = parts[0]!.x ? [] : [sourceOf(source), ...(normed ? [vector(normed.weight)] : [])];
  const format = formatOf(builder, x);
  const few = fewItems(builder);
  const { lanes, threads } = traits;
  const gated = parts[0]!.gate !== undefined;
  const outputs = parts.reduce((sum, { y }) => sum + y.width, 0);
  const known = vectorItems(format, x.width, threads);
  const all = many ? known.slice(-1) : known;
  let least = many ? few + 1 : 1;
  for (const items of all) {
    const shape = vectorShape({ format, items, lanes, gated, width: x.width, outputs, threads });
    const [low, most] = [least, items === all.at(-1) ? (many ?? few) : items];
    const groups = vectorGroups(parts, shape);
    const grid = (view: View): Grid => {
      const count = countOf(view, domain);
      return count < low || count > most ? none : [groups, Math.ceil(count / items), 1];
    };
    const kernel = linearVector({
      domain,
      x: { ...partOf(source), last: last !== undefined },
      format,
      parts,
      shape,
      eps: normed?.eps,
    });
    emit(kernel, [...sources, ...buffers], grid, replay);
    least = most + 1;
  }
}

/** Products of more items than a few; of any number where there are no kernels for vectors, which all of them have or none. */
function emitMany(builder: Builder, x: Operand, products: readonly Product[], replay = false): void {
  const { traits, temp } = builder;
  const { domain } = x;
  const vectors = products.every(({ y }) => hasVectors(builder, x, y.width));
  const only: Only = (grid) => (vectors ? onlyMany(builder, domain, grid) : grid);
  const ready = products.map(
    ({ weight, ...product }): Ready => ({
      ...product,
      weights: numbersOf(builder, x, weight, product.y.width, only, replay),
    }),
  );
  if (traits.matrices && vectors) {
    emitMatrices(builder, x, ready, only, replay);
    return;
  }
  for (const product of ready) {
    const { y, add } = product;
    const own = add ? { ...y, ref: temp(y.width, y.type, domain) } : y;
    emitTiles(builder, x, { ...product, y: own }, only, replay);
    if (add) emitSum(builder, add, own, y, only);
  }
}

type Only = (grid: (view: View) => Grid) => (view: View) => Grid;

/** A product whose matrix is in the compute type. */
interface Ready extends Omit<Product, 'weight'> {
  readonly weights: BufferRef;
}

/** A matrix in the compute type. */
function numbersOf(
  builder: Builder,
  x: Operand,
  weight: Weight,
  outputs: number,
  only: Only,
  replay: boolean,
): BufferRef {
  const { type, emit, temp } = builder;
  const format = x.width < narrow || outputs < narrow ? type : formatOf(builder, x);
  const stored = matrix(builder, weight, format);
  if (!isQuantised(format)) return stored;
  const count = x.width * outputs;
  const numbers = temp(count, type, 'once');
  const grid = only(() => dequantiseGrid(format, count));
  emit(dequantise(format, type, count), [stored, numbers], grid, replay);
  return numbers;
}

const buffersOf = ({ weights, bias, add, y }: Ready): BufferRef[] => [
  weights,
  ...(bias === undefined ? [] : [vector(bias)]),
  ...(add && add.ref !== y.ref ? [add.ref] : []),
  y.ref,
];

function emitTiles(
  { type, emit }: Builder,
  x: Operand,
  { y, bias, weights }: Ready,
  only: Only,
  replay: boolean,
): void {
  const { domain } = x;
  const buffers = [x.ref, ...buffersOf({ y, bias, weights })];
  if (x.width < narrow || y.width < narrow) {
    emit(linear(domain, y, x, type, bias !== undefined), buffers, perElement(y), replay);
    return;
  }
  const tiles = (view: View): Grid => [Math.ceil(y.width / tileSize), Math.ceil(countOf(view, domain) / tileSize), 1];
  emit(linearTiles(domain, y, x, type, bias !== undefined), buffers, only(tiles), replay);
}

/** By subgroup matrices: some items by one kernel for all products, many by one for each. */
function emitMatrices(builder: Builder, x: Operand, products: readonly Ready[], only: Only, replay: boolean): void {
  emitThin(builder, x, products.map(partOfProduct), products.flatMap(buffersOf), only, replay);
  for (const product of products) {
    emitWhole(builder, x, partOfProduct(product), buffersOf(product), replay);
    if (product.exact) emitRest(builder, x, product, replay);
  }
}

/** More than a few items, up to thinItems. Buffers are those after x. */
function emitThin(
  builder: Builder,
  x: Operand,
  parts: readonly VectorPart[],
  buffers: readonly BufferRef[],
  only: Only,
  replay: boolean,
): void {
  const { traits, emit } = builder;
  const { domain } = x;
  const outputs = outputsOf(parts);
  const slim = outputs <= fewOutputs && !traits.weights;
  if (slim) emitVectors(builder, x, parts, buffers, replay, thinItems);
  let least = 0;
  for (const most of slim ? [] : [16, 32, thinItems]) {
    const shape = thinShape(most, outputs);
    const [low, groups] = [least, thinGroups(parts, shape)];
    const some = (view: View): Grid => {
      const count = countOf(view, domain);
      return count > low && count <= most ? [groups, 1, 1] : none;
    };
    emit(linearThin(domain, parts, partOf(x), shape), [sourceOf(x), ...buffers], only(some), replay);
    least = most;
  }
}

/** Of all matrices. */
function outputsOf(parts: readonly VectorPart[]): number {
  return parts.reduce((sum, { y, gate }) => sum + (gate ? 2 * y.width : y.width), 0);
}

/** More than thinItems items: whole tiles. Buffers are those after x. */
function emitWhole(
  { traits, emit }: Builder,
  x: Operand,
  part: VectorPart,
  buffers: readonly BufferRef[],
  replay: boolean,
): void {
  const { domain } = x;
  const outputs = outputsOf([part]);
  const large = traits.product ?? matrixShape;
  const chosen = (count: number) => {
    const [across, down] = matrixGroups(count, outputs, large);
    return across * down >= enoughGroups ? large : smallShape;
  };
  for (const shape of new Set([large, smallShape])) {
    const many = (view: View): Grid => {
      const count = countOf(view, domain);
      return count <= thinItems || shape !== chosen(count) ? none : matrixGroups(count, outputs, shape);
    };
    emit(linearMatrix(domain, part.y, partOf(x), part, shape), [sourceOf(x), ...buffers], many, replay);
  }
}

/**
 * Adds the product of what float16 leaves of a norm: the logits of all tokens, as an evaluation wants them, are then as exact
 * as those of a few last ones, whose kernels norm in float32.
 */
function emitRest(builder: Builder, x: Operand, { y, weights }: Ready, replay: boolean): void {
  const { normed, domain } = x;
  if (!normed || domain === 'row') return;
  const rest = result(builder, x.width, domain);
  const many = (view: View): Grid => (countOf(view, domain) > thinItems ? perItem(domain)(view) : none);
  const kernel = rmsNorm(domain, rest, normed.x, normed.eps, { rest: x });
  builder.emit(kernel, [normed.x.ref, vector(normed.weight), x.ref, rest.ref], many, replay);
  emitWhole(builder, rest, { y, bias: false, add: 'own' }, [weights, y.ref], replay);
}

/** y = a + b; y may be a. */
export function emitSum({ emit }: Builder, a: Operand, b: Operand, y: Operand, only: Only = (grid) => grid): void {
  const grid = only(perElement(y, elementsAThread(y, a, b)));
  if (a.ref === y.ref) emit(accumulate(y.domain, y, b), [b.ref, y.ref], grid);
  else emit(sum(y.domain, y, a, b), [a.ref, b.ref, y.ref], grid);
}
