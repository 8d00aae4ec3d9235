import type { Shape } from './elementwise.js';
import { elementwiseSize } from './elementwise.js';
import { type Element, type Kernel, kernel } from './kernel.js';

/** y [tokens, width]: rows of table [vocabulary, width] by token id. */
export function embed(y: Shape, table: Element): Kernel {
  return kernel({
    name: 'embed',
    buffers: { table: [table, 'read'], y: [y.type, 'write'] },
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= batch[0].y * ${y.width}u) { return; }
  let token = token_at(i / ${y.width}u);
  let feature = i % ${y.width}u;
  y[token.x * ${y.width}u + feature] = ${y.type}(table[token.w * ${y.width}u + feature]);`,
  });
}
