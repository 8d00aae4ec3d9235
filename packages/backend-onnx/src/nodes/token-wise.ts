import type { Node, NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import { float as float32 } from '../protobuf.js';

/** Nodes that treat every token alone. Inside the models every value is [1, N, width], as the operators of com.microsoft like it. */
export type TokenWise = Extract<
  Node,
  { op: 'embed' | 'linear' | 'rmsNorm' | 'add' | 'mul' | 'concat' | 'slice' | 'activate' | 'lastToken' }
>;

export function isTokenWise(node: Node): node is TokenWise {
  return tokenWise.has(node.op);
}

const tokenWise: ReadonlySet<Node['op']> = new Set([
  'embed',
  'linear',
  'rmsNorm',
  'add',
  'mul',
  'concat',
  'slice',
  'activate',
  'lastToken',
] satisfies TokenWise['op'][]);

export interface Inputs {
  /** int32 [1, N], or [N, 1] where rows lead */
  ids(): Ref;
  /** int64 [rows] */
  last(): Ref;
  value(value: number): Ref;
}

export function lowerTokenWise(node: TokenWise, lowering: Lowering, inputs: Inputs): Ref {
  const { graph, weight, product, decode } = lowering;
  switch (node.op) {
    case 'embed':
      return graph.op('Gather', [weight(node.table), inputs.ids()], { axis: 0 });
    case 'linear': {
      const y = product(inputs.value(node.x), node.weight);
      return node.bias === undefined ? y : graph.op('Add', [y, weight(node.bias)]);
    }
    case 'rmsNorm':
      return graph.op('SimplifiedLayerNormalization', [inputs.value(node.x), weight(node.weight)], {
        axis: -1,
        epsilon: float32(node.eps),
        stash_type: 1,
      });
    case 'add':
      return graph.op('Add', [inputs.value(node.a), inputs.value(node.b)]);
    case 'mul':
      return graph.op('Mul', [inputs.value(node.a), inputs.value(node.b)]);
    case 'concat':
      return graph.concat([inputs.value(node.a), inputs.value(node.b)], 2);
    case 'slice':
      return graph.slice(inputs.value(node.x), 2, node.from, node.to);
    case 'activate':
      return activate(node.fn, lowering, inputs.value(node.x));
    case 'lastToken':
      return decode ? inputs.value(node.x) : graph.op('Gather', [inputs.value(node.x), inputs.last()], { axis: 1 });
  }
}

function activate(fn: NodeOf<'activate'>['fn'], { graph, float, compute }: Lowering, x: Ref): Ref {
  switch (fn) {
    case 'silu':
      return graph.msOp('QuickGelu', [x], { alpha: float32(1) });
    case 'gelu':
      return graph.op('Gelu', [x], { approximate: 'none' });
    // In float: in float16 1 + e^x leaves little of a small e^x.
    case 'softplus':
      return compute(graph.op('Softplus', [float(x)]));
    case 'logSigmoid':
      return compute(graph.op('Neg', [graph.op('Softplus', [graph.op('Neg', [float(x)])])])); // log(1 / (1 + e^-x))
  }
}
