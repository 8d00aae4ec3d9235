import type { NodeOf, Weight } from '@dsla/spec';
import { type Builder, countOf, matrix, type Operand, partOf, perElement, sourceOf, vector } from './builder.js';
import { accumulate, activateMul, add as sum } from './kernels/elementwise.js';
import type { Domain, Grid } from './kernels/kernel.js';
import { linear } from './kernels/linear.js';
import { linearMatrix, matrixShape } from './kernels/linear-matrix.js';
import { linearThin, thinItems, thinShape } from './kernels/linear-thin.js';
import { linearTiles, tileSize } from './kernels/linear-tiles.js';
import { hasVector, linearVector, vectorGroups, vectorItems, vectorShape } from './kernels/linear-vector.js';
import { dequantise, dequantiseGrid, type Format, isQuantised } from './kernels/quantise.js';
import type { VectorPart } from './kernels/vector-options.js';
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
}

const none: Grid = [0, 0, 0];

/** At most as many items go to the kernels for vectors: more are for subgroup matrices; quantised matrices would be read too often. */
function fewItems({ traits }: Builder): number {
  if (traits.weights) return 8;
  return traits.matrices ? 4 : 64;
}

/** A grid for a few items, or for many. */
export function onlyFew(builder: Builder, domain: Domain, grid: (view: View) => Grid): (view: View) => Grid {
  return (view) => (countOf(view, domain) <= fewItems(builder) ? grid(view) : none);
}

export function onlyMany(builder: Builder, domain: Domain, grid: (view: View) => Grid): (view: View) => Grid {
  return (view) => (countOf(view, domain) <= fewItems(builder) ? none : grid(view));
}

/** Products of the same x, for a few items by one kernel. `replay` as in Op. */
export function emitLinear(builder: Builder, x: Operand, products: readonly Product[], replay = false): void {
  const wide = products.every(({ y }) => hasVectors(builder, x, y.width));
  if (wide) emitFew(builder, x, products, replay);
  for (const product of products) {
    if (!wide && hasVectors(builder, x, product.y.width)) emitLinear(builder, x, [product], replay);
    else emitMany(builder, x, product, replay);
  }
}

/** y = f(x W^T) * (x U^T), by one kernel for a few items. */
export function emitGated(
  builder: Builder,
  x: Operand,
  y: Operand,
  fn: NodeOf<'activate'>['fn'],
  gate: Weight,
  up: Weight,
): void {
  const { emit, temp, type } = builder;
  const { domain } = x;
  const few = hasVectors(builder, x, y.width);
  const format = formatOf(builder, x);
  if (few) {
    const matrices = [gate, up].map((weight) => matrix(builder, weight, format));
    emitVectors(builder, x, [{ y, bias: false, gate: fn }], [...matrices, y.ref]);
  }
  const halves = [gate, up].map((weight) => {
    const half: Operand = { ref: temp(y.width, type, domain), width: y.width, type, domain };
    emitMany(builder, x, { weight, y: half });
    return half;
  });
  const [a, b] = halves as [Operand, Operand];
  const all = perElement(y);
  emit(activateMul(fn, domain, y, a, b), [a.ref, b.ref, y.ref], few ? onlyMany(builder, domain, all) : all);
}

/** Whether products of x with so many outputs have kernels for a few items. */
export function hasVectors(builder: Builder, x: Pick<Operand, 'width' | 'type'>, outputs: number): boolean {
  const { traits, type } = builder;
  if (x.width < narrow || outputs < narrow || traits.lanes === 0 || x.type !== type) return false;
  return hasVector(formatOf(builder, x), x);
}

const narrow = 64;

/** How the matrix of a product of x is stored. */
function formatOf({ traits, type }: Builder, x: Pick<Operand, 'width' | 'type'>): Format {
  return traits.weights && traits.lanes > 0 && hasVector(traits.weights, x) ? traits.weights : type;
}

function addOf(y: Operand, add: Operand | undefined): VectorPart['add'] {
  return add?.ref === y.ref ? 'own' : add;
}

/** Products of the same x for a few items; all must have such kernels. */
export function emitFew(builder: Builder, x: Operand, products: readonly Product[], replay = false): void {
  const parts = products.map(({ y, bias, add }): VectorPart => ({ y, bias: bias !== undefined, add: addOf(y, add) }));
  const format = formatOf(builder, x);
  const buffers = products.flatMap(({ weight, bias, add, y }) => [
    matrix(builder, weight, format),
    ...(bias === undefined ? [] : [vector(bias)]),
    ...(add && add.ref !== y.ref ? [add.ref] : []),
    y.ref,
  ]);
  emitVectors(builder, x, parts, buffers, replay);
}

function emitVectors(
  builder: Builder,
  x: Operand,
  parts: readonly VectorPart[],
  buffers: readonly BufferRef[],
  replay = false,
): void {
  const { traits, emit } = builder;
  const { domain, normed } = x;
  const source = normed?.x ?? x;
  const sources = [sourceOf(source), ...(normed ? [vector(normed.weight)] : [])];
  const format = formatOf(builder, x);
  let least = 1;
  const all = vectorItems(format, x.width);
  for (const items of all) {
    const shape = vectorShape(format, items, traits.lanes, parts[0]!.gate !== undefined, x.width);
    const [low, most] = [least, items === all.at(-1) ? fewItems(builder) : items];
    const groups = parts.reduce((sum, { y }) => sum + vectorGroups(y.width, shape), 0);
    const grid = (view: View): Grid => {
      const count = countOf(view, domain);
      return count < low || count > most ? none : [groups, Math.ceil(count / items), 1];
    };
    const kernel = linearVector({ domain, x: partOf(source), format, parts, shape, eps: normed?.eps });
    emit(kernel, [...sources, ...buffers], grid, replay);
    least = most + 1;
  }
}

/** A product of more items than a few; of any number where there are no kernels for vectors. */
export function emitMany(builder: Builder, x: Operand, { weight, bias, y, add }: Product, replay = false): void {
  const { type, traits, emit, temp } = builder;
  const { domain } = x;
  const vectors = hasVectors(builder, x, y.width);
  const only = (grid: (view: View) => Grid) => (vectors ? onlyMany(builder, domain, grid) : grid);
  if (add) {
    const product: Operand = { ...y, ref: temp(y.width, y.type, domain) };
    emitMany(builder, x, { weight, bias, y: product }, replay);
    emitSum(builder, add, product, y, only(perElement(y)));
    return;
  }
  const isNarrow = x.width < narrow || y.width < narrow;
  const format = isNarrow ? type : formatOf(builder, x);
  const count = x.width * y.width;
  let weights = matrix(builder, weight, format);
  if (isQuantised(format)) {
    const stored = weights;
    weights = temp(count, type, 'once');
    emit(
      dequantise(format, type, count),
      [stored, weights],
      only(() => dequantiseGrid(format, count)),
      replay,
    );
  }
  const buffers = [x.ref, weights, ...(bias === undefined ? [] : [vector(bias)]), y.ref];
  const biased = bias !== undefined;
  if (isNarrow) {
    emit(linear(domain, y, x, type, biased), buffers, perElement(y), replay);
    return;
  }
  const grid =
    ({ outputs, items }: { readonly outputs: number; readonly items: number }) =>
    (view: View): Grid => [Math.ceil(y.width / outputs), Math.ceil(countOf(view, domain) / items), 1];
  if (!traits.matrices || !vectors) {
    const tiles = grid({ outputs: tileSize, items: tileSize });
    emit(linearTiles(domain, y, x, type, biased), buffers, only(tiles), replay);
    return;
  }
  let least = 0;
  for (const most of [16, 32, thinItems]) {
    const shape = thinShape(most);
    const [low, all] = [least, grid(shape)];
    const some = (view: View): Grid => {
      const count = countOf(view, domain);
      return count > low && count <= most ? all(view) : none;
    };
    emit(linearThin(domain, y, x, biased, shape), buffers, only(some), replay);
    least = most;
  }
  const shape = traits.product ?? matrixShape;
  const wide = grid(shape);
  const many = (view: View): Grid => (countOf(view, domain) <= thinItems ? none : wide(view));
  emit(linearMatrix(domain, y, x, biased, shape), buffers, only(many), replay);
}

/** y = a + b; y may be a. */
export function emitSum({ emit }: Builder, a: Operand, b: Operand, y: Operand, grid: (view: View) => Grid): void {
  if (a.ref === y.ref) emit(accumulate(y.domain, y, b), [b.ref, y.ref], grid);
  else emit(sum(y.domain, y, a, b), [a.ref, b.ref, y.ref], grid);
}
