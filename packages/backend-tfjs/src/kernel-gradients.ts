import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

// TensorFlow.js for Node comes without the gradients of its kernels: they are only in the full package, with everything else.
// Here are those of the kernels that the nodes use. Where a full package has registered its own, they are left alone.

type Slopes = Readonly<Record<string, () => Tensor>>;
type Rule = (dy: Tensor, saved: Tensor[], attrs: tf.NamedAttrMap) => Slopes;

const rules: tf.GradConfig[] = [
  pair('Add', (dy) => ({ a: () => dy, b: () => dy })),
  pair('Sub', (dy) => ({ a: () => dy, b: () => tf.neg(dy) })),
  pair('Multiply', (dy, a, b) => ({ a: () => tf.mul(dy, b), b: () => tf.mul(dy, a) })),
  pair('RealDiv', (dy, a, b) => ({
    a: () => tf.div(dy, b),
    b: () => tf.neg(tf.div(tf.mul(dy, a), tf.square(b))),
  })),
  pair('Maximum', (dy, a, b) => ({
    a: () => tf.mul(dy, tf.cast(tf.greaterEqual(a, b), 'float32')),
    b: () => tf.mul(dy, tf.cast(tf.greater(b, a), 'float32')),
  })),

  ofInput('Neg', (dy) => tf.neg(dy)),
  ofInput('Identity', (dy) => tf.clone(dy)),
  ofInput('Abs', (dy, x) => tf.mul(dy, tf.sign(x))),
  ofInput('Square', (dy, x) => tf.mul(dy, tf.mul(x, 2))),
  ofInput('Erf', (dy, x) => tf.mul(dy, tf.mul(tf.exp(tf.neg(tf.square(x))), 2 / Math.sqrt(Math.PI)))),
  ofOutput('Exp', (dy, y) => tf.mul(dy, y)),
  ofOutput('Rsqrt', (dy, y) => tf.mul(dy, tf.mul(tf.mul(tf.square(y), y), -0.5))),
  ofOutput('Sigmoid', (dy, y) => tf.mul(dy, tf.mul(y, tf.sub(1, y)))),
  ofOutput('Softmax', (dy, y, { dim }) => {
    const product = tf.mul(dy, y);
    return tf.sub(product, tf.mul(y, tf.sum(product, dim as number, true)));
  }),

  ofInput('Sum', (dy, x, { axis }) => tf.mul(spread(dy, x, axis), tf.onesLike(x))),
  ofInput('Mean', (dy, x, { axis }) => tf.mul(spread(dy, x, axis), tf.fill(x.shape, dy.size / x.size))),
  {
    kernelName: 'Max',
    inputsToSave: ['x'],
    outputsToSave: [true],
    gradFunc: rule((dy, [x, y], { reductionIndices: axis }) => ({
      x: () => {
        const top = tf.cast(tf.equal(x!, spread(y!, x!, axis)), 'float32');
        const ties = tf.sum(top, axis as number[], true);
        return tf.mul(tf.div(top, ties), spread(dy, x!, axis));
      },
    })),
  },

  ofInput('Reshape', (dy, x) => tf.reshape(dy, x.shape)),
  {
    kernelName: 'ExpandDims',
    inputsToSave: ['input'],
    gradFunc: rule((dy, [x]) => ({ input: () => tf.reshape(dy, x!.shape) })),
  },
  ofInput('Transpose', (dy, _, { perm }) => {
    const order = perm as number[];
    return tf.transpose(
      dy,
      order.map((__, axis) => order.indexOf(axis)),
    );
  }),
  ofInput('Slice', (dy, x, { begin, size }) => {
    const [from, length] = tf.slice_util.parseSliceParams(x, begin as number[], size as number[]);
    return tf.pad(
      dy,
      from!.map((start, axis) => [start, x.shape[axis]! - start - length![axis]!]),
    );
  }),
  ofInput('PadV2', (dy, x, { paddings }) =>
    tf.slice(
      dy,
      (paddings as number[][]).map(([before]) => before!),
      x.shape,
    ),
  ),
  ofInput('Tile', (dy, x, { reps }) => untile(dy, x.shape, reps as number[])),
  {
    kernelName: 'Concat',
    saveAllInputs: true,
    gradFunc: rule((dy, pieces, { axis }) => {
      const [along] = tf.util.parseAxisParam(axis as number, dy.shape);
      return listed(
        tf.split(
          dy,
          pieces.map(({ shape }) => shape[along!]!),
          along,
        ),
      );
    }),
  },
  { kernelName: 'Pack', gradFunc: rule((dy, _, { axis }) => listed(tf.unstack(dy, axis as number))) },
  { kernelName: 'Unpack', gradFunc: rule((dy, _, { axis }) => ({ value: () => tf.stack(many(dy), axis as number) })) },
  { kernelName: 'SplitV', gradFunc: rule((dy, _, { axis }) => ({ x: () => tf.concat(many(dy), axis as number) })) },
  {
    kernelName: 'BatchMatMul',
    inputsToSave: ['a', 'b'],
    gradFunc: rule((dy, [a, b], { transposeA, transposeB }) => product(dy, a!, b!, !!transposeA, !!transposeB)),
  },
];

/** To be called before anything is taped. */
export function registerGradients(): void {
  for (const one of rules) if (!tf.getGradient(one.kernelName)) tf.registerGradient(one);
}

function rule(of: Rule): tf.GradFunc {
  return of as unknown as tf.GradFunc; // typed for one or several dy alike
}

function ofInput(kernelName: string, of: (dy: Tensor, x: Tensor, attrs: tf.NamedAttrMap) => Tensor): tf.GradConfig {
  return { kernelName, inputsToSave: ['x'], gradFunc: rule((dy, [x], attrs) => ({ x: () => of(dy, x!, attrs) })) };
}

function ofOutput(kernelName: string, of: (dy: Tensor, y: Tensor, attrs: tf.NamedAttrMap) => Tensor): tf.GradConfig {
  const gradFunc = rule((dy, [y], attrs) => {
    const slope = () => of(dy, y!, attrs);
    return kernelName === 'Softmax' ? { logits: slope } : { x: slope };
  });
  return { kernelName, outputsToSave: [true], gradFunc };
}

/** An operation of two broadcast inputs; gradients are summed over what was broadcast. */
function pair(
  kernelName: string,
  of: (dy: Tensor, a: Tensor, b: Tensor) => Record<'a' | 'b', () => Tensor>,
): tf.GradConfig {
  const gradFunc = rule((dy, [a, b]) => {
    const slopes = of(dy, a!, b!);
    return { a: () => reduce(slopes.a(), a!.shape), b: () => reduce(slopes.b(), b!.shape) };
  });
  return { kernelName, inputsToSave: ['a', 'b'], gradFunc };
}

function reduce(dy: Tensor, shape: number[]): Tensor {
  const axes = tf.broadcast_util.getReductionAxes(shape, dy.shape);
  return tf.reshape(axes.length > 0 ? tf.sum(dy, axes) : dy, shape);
}

/** A reduced tensor with its lost axes back, as axes of 1. */
function spread(y: Tensor, x: Tensor, axis: unknown): Tensor {
  const axes = tf.util.parseAxisParam(axis as number[], x.shape);
  return tf.reshape(
    y,
    x.shape.map((size, index) => (axes.includes(index) ? 1 : size)),
  );
}

function untile(dy: Tensor, shape: readonly number[], reps: readonly number[]): Tensor {
  let sum = dy;
  reps.forEach((times, axis) => {
    if (times === 1) return;
    const split = [...sum.shape.slice(0, axis), times, shape[axis]!, ...sum.shape.slice(axis + 1)];
    sum = tf.sum(tf.reshape(sum, split), axis);
  });
  return tf.reshape(sum, [...shape]);
}

function product(dy: Tensor, a: Tensor, b: Tensor, turnA: boolean, turnB: boolean): Slopes {
  return {
    a: () => (turnA ? tf.matMul(b, dy, turnB, true) : tf.matMul(dy, b, false, !turnB)),
    b: () => (turnB ? tf.matMul(dy, a, true, turnA) : tf.matMul(a, dy, !turnA, false)),
  };
}

/** Gradients of a list of inputs. */
function listed(slopes: Tensor[]): Slopes {
  return Object.fromEntries(slopes.map((slope, index) => [index, () => slope]));
}

/** The gradients of a kernel with several outputs. */
function many(dy: Tensor): Tensor[] {
  return dy as unknown as Tensor[];
}
