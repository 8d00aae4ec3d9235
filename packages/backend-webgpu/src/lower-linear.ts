import type { NodeOf, Weight } from '@dsla/spec';
import { type Builder, countOf, matrix, type Operand, perElement, vector } from './builder.js';
import { activateMul } from './kernels/elementwise.js';
import type { Grid } from './kernels/kernel.js';
import { linear } from './kernels/linear.js';
import { linearMatrix, matrixTile } from './kernels/linear-matrix.js';
import { linearTiles, tileSize } from './kernels/linear-tiles.js';
import { linearVector, loadWidth, type VectorPart, vectorGroups } from './kernels/linear-vector.js';
import type { BufferRef } from './program.js';
import type { View } from './view.js';

// Which kernel a product gets depends on the number of items alone, so a row does not see its neighbours: all that may serve
// are recorded, those that do not fit get no workgroups.

/** y = x W^T + b. */
export interface Product {
  readonly weight: Weight;
  readonly bias?: Weight | undefined;
  readonly y: Operand;
}

const none: Grid = [0, 0, 0];

/** At most as many items go to the kernels for vectors. */
const fewItems = 64;

/** Products of the same x, for a few items by one kernel. `replay` as in Op. */
export function emitLinear(builder: Builder, x: Operand, products: readonly Product[], replay = false): void {
  const wide = products.every(({ y }) => hasVectors(builder, x, y));
  if (wide) {
    const parts = products.map(({ y, bias }): VectorPart => ({ y, bias: bias !== undefined }));
    emitFew(builder, x, parts, [x.ref, ...products.flatMap((product) => buffersOf(builder, product))], replay);
  }
  for (const product of products) {
    if (!wide && hasVectors(builder, x, product.y)) emitLinear(builder, x, [product], replay);
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
  const { domain, ref } = x;
  const few = hasVectors(builder, x, y);
  if (few)
    emitFew(builder, x, [{ y, bias: false, gate: fn }], [ref, matrix(builder, gate), matrix(builder, up), y.ref]);
  const halves = [gate, up].map((weight) => {
    const half: Operand = { ref: temp(y.width, type, domain), width: y.width, type, domain };
    emitMany(builder, x, { weight, y: half });
    return half;
  });
  const [a, b] = halves as [Operand, Operand];
  const all = perElement(y);
  const many = (view: View): Grid => (few && countOf(view, domain) <= fewItems ? none : all(view));
  emit(activateMul(fn, domain, y, a, b), [a.ref, b.ref, y.ref], many);
}

function buffersOf(builder: Builder, { weight, bias, y }: Product): BufferRef[] {
  return [matrix(builder, weight), ...(bias === undefined ? [] : [vector(bias)]), y.ref];
}

function isNarrow(x: Operand, y: Operand): boolean {
  return x.width < 64 || y.width < 64;
}

function hasVectors({ traits, type }: Builder, x: Operand, y: Operand): boolean {
  return !isNarrow(x, y) && traits.lanes > 0 && x.type === type && x.width % loadWidth[type] === 0;
}

function emitFew(
  { traits, emit }: Builder,
  x: Operand,
  parts: readonly VectorPart[],
  buffers: readonly BufferRef[],
  replay = false,
): void {
  let least = 1;
  for (const items of [1, 2, 4, 8]) {
    const shape = { items, outputs: items === 1 && !parts[0]!.gate ? 2 : 1, lanes: traits.lanes };
    const [low, most] = [least, items === 8 ? fewItems : items];
    const groups = parts.reduce((sum, { y }) => sum + vectorGroups(y.width, shape), 0);
    const grid = (view: View): Grid => {
      const count = countOf(view, x.domain);
      return count < low || count > most ? none : [groups, Math.ceil(count / items), 1];
    };
    emit(linearVector(x.domain, x, parts, shape), buffers, grid, replay);
    least = most + 1;
  }
}

/** A product of more items than a few; of any number where there are no kernels for vectors. */
function emitMany(builder: Builder, x: Operand, product: Product, replay = false): void {
  const { type, traits, emit } = builder;
  const { domain } = x;
  const { y, bias } = product;
  const biased = bias !== undefined;
  const buffers = [x.ref, ...buffersOf(builder, product)];
  if (isNarrow(x, y)) {
    emit(linear(domain, y, x, type, biased), buffers, perElement(y), replay);
    return;
  }
  const vectors = hasVectors(builder, x, y);
  const matrices = traits.matrices && vectors;
  const tile = matrices ? matrixTile : tileSize;
  const grid = (view: View): Grid => {
    const count = countOf(view, domain);
    if (vectors && count <= fewItems) return none;
    return [Math.ceil(y.width / tile), Math.ceil(count / tile), 1];
  };
  const kernel = matrices ? linearMatrix(domain, y, x, biased) : linearTiles(domain, y, x, type, biased);
  emit(kernel, buffers, grid, replay);
}
