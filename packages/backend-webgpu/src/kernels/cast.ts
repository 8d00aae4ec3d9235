import { type Element, type Kernel, kernel } from './kernel.js';

const size = 256;

/** Workgroups of a cast. */
export const castGroups = 256;

/** y = x for a whole buffer: values that a layer reads in another type than the one that they have. */
export function cast(y: Element, x: Element): Kernel {
  return kernel({
    name: 'cast',
    buffers: { x: [x, 'read'], y: [y, 'write'] },
    size,
    main: `  for (var i = group.x * ${size}u + lane; i < min(arrayLength(&x), arrayLength(&y)); i += groups.x * ${size}u) {
    y[i] = ${y}(x[i]);
  }`,
  });
}
