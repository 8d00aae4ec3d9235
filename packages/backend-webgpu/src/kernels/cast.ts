import { type Element, type Kernel, kernel } from './kernel.js';

const size = 256;

/** y = x for a whole buffer, 256 workgroups: values that a caller uploaded in another type. */
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
