import type { Node, NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import { float } from '../protobuf.js';

/** Nodes that treat every token alone. x is [N, width]. */
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
  /** int32 [N] */
  ids(): Ref;
  /** int64 [rows] */
  last(): Ref;
  value(value: number): Ref;
}

export function lowerTokenWise(node: TokenWise, { graph, weight }: Lowering, inputs: Inputs): Ref {
  switch (node.op) {
    case 'embed':
      return graph.op('Gather', [weight(node.table), inputs.ids()], { axis: 0 });
    case 'linear': {
      const operands = [inputs.value(node.x), weight(node.weight)];
      if (node.bias !== undefined) operands.push(weight(node.bias));
      return graph.op('Gemm', operands, { transB: 1 });
    }
    case 'rmsNorm':
      return graph.op('SimplifiedLayerNormalization', [inputs.value(node.x), weight(node.weight)], {
        axis: -1,
        epsilon: float(node.eps),
        stash_type: 1,
      });
    case 'add':
      return graph.op('Add', [inputs.value(node.a), inputs.value(node.b)]);
    case 'mul':
      return graph.op('Mul', [inputs.value(node.a), inputs.value(node.b)]);
    case 'concat':
      return graph.concat([inputs.value(node.a), inputs.value(node.b)], 1);
    case 'slice':
      return graph.slice(inputs.value(node.x), 1, node.from, node.to);
    case 'activate':
      return activate(node.fn, graph, inputs.value(node.x));
    case 'lastToken':
      return graph.op('Gather', [inputs.value(node.x), inputs.last()], { axis: 0 });
  }
}

function activate(fn: NodeOf<'activate'>['fn'], graph: Lowering['graph'], x: Ref): Ref {
  switch (fn) {
    case 'silu':
      return graph.msOp('QuickGelu', [x], { alpha: float(1) });
    case 'gelu':
      return graph.op('Gelu', [x], { approximate: 'none' });
    case 'softplus':
      return graph.op('Softplus', [x]);
    case 'logSigmoid':
      return logSigmoid(graph, x);
  }
}

/** log(1 / (1 + e^-x)) = -softplus(-x) */
export function logSigmoid(graph: Lowering['graph'], x: Ref): Ref {
  return graph.op('Neg', [graph.op('Softplus', [graph.op('Neg', [x])])]);
}
