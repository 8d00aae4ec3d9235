import type { Weight } from '@dsla/spec';
import { type Builder, countOf, matrix, type Operand, perElement, vector } from './builder.js';
import type { Grid } from './kernels/kernel.js';
import { linear } from './kernels/linear.js';
import { linearMatrix, matrixTile } from './kernels/linear-matrix.js';
import { linearTiles, tileSize } from './kernels/linear-tiles.js';
import { linearVector, loadWidth, vectorOutputs } from './kernels/linear-vector.js';
import type { View } from './view.js';

const none: Grid = [0, 0, 0];

/** At most as many items go to the kernels for vectors. */
const fewItems = 16;

/**
 * y = x W^T + b. Which kernel runs depends on the number of items alone, so a row does not see its neighbours: all kernels
 * are recorded, those that do not fit get no workgroups.
 */
export function emitLinear(
  builder: Builder,
  x: Operand,
  y: Operand,
  weight: Weight,
  bias: Weight | undefined,
  replay: boolean,
): void {
  const { type, traits, emit } = builder;
  const { domain } = x;
  const biased = bias !== undefined;
  const buffers = [x.ref, matrix(builder, weight), ...(biased ? [vector(bias)] : []), y.ref];
  if (x.width < 64 || y.width < 64) {
    emit(linear(domain, y, x, type, biased), buffers, perElement(y), replay);
    return;
  }
  const vectors = traits.lanes > 0 && x.type === type && x.width % loadWidth[type] === 0;
  const from = vectors ? fewItems + 1 : 1;
  const tiles = (n: number) => Math.ceil(n / tileSize);
  const many = (view: View): Grid => {
    const count = countOf(view, domain);
    return count < from ? none : [tiles(y.width), tiles(count), 1];
  };
  if (vectors) {
    let least = 1;
    for (const items of [1, 2, 4, 8]) {
      const shape = { items, outputs: items === 1 ? 2 : 1, lanes: traits.lanes };
      const [low, most] = [least, items === 8 ? fewItems : items];
      const few = (view: View): Grid => {
        const count = countOf(view, domain);
        if (count < low || count > most) return none;
        return [Math.ceil(y.width / vectorOutputs(shape)), Math.ceil(count / items), 1];
      };
      emit(linearVector(domain, y, x, shape, biased), buffers, few, replay);
      least = most + 1;
    }
  }
  if (traits.matrices && vectors) {
    const across = (n: number) => Math.ceil(n / matrixTile);
    const most = (view: View): Grid => {
      const count = countOf(view, domain);
      return count < from ? none : [across(y.width), across(count), 1];
    };
    emit(linearMatrix(domain, y, x, biased), buffers, most, replay);
    return;
  }
  emit(linearTiles(domain, y, x, type, biased), buffers, many, replay);
}
