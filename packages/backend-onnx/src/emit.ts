import type { Operator } from './cuda/operator.js';
import {
  type Attribute,
  type ElementType,
  elementCode,
  encodeModel,
  type NodeProto,
  type TensorProto,
  type ValueProto,
} from './protobuf.js';

/** Name of a tensor inside a model. */
export type Ref = string;
export type Dims = readonly (number | string)[];

/** What a size like `2 rows` counts for every row. */
export function ofRows(size: number | string): number | undefined {
  const count = typeof size === 'string' ? /^(\d+) rows$/.exec(size)?.[1] : undefined;
  return count === undefined ? undefined : Number(count);
}

const microsoft = 'com.microsoft';
/** Of operators of our own. */
export const ownDomain = 'dsla';

export interface MatmulOptions {
  readonly transA?: boolean;
  readonly transB?: boolean;
  readonly alpha?: number;
}

/** Builds one ONNX model, node by node. */
export class GraphBuilder {
  readonly #nodes: NodeProto[] = [];
  readonly #inputs: ValueProto[] = [];
  readonly #outputs: ValueProto[] = [];
  readonly #constants = new Map<string, TensorProto>();
  /** Values that are graph outputs, by their first name. */
  readonly #renamed = new Map<Ref, string>();
  readonly #operators = new Map<string, Operator>();

  /** Those of our own that it uses. */
  get operators(): readonly Operator[] {
    return [...this.#operators.values()];
  }

  input(name: string, type: ElementType, dims: Dims): Ref {
    this.#inputs.push({ name, type, dims });
    return name;
  }

  /** Makes `value` a graph output called `name`: the node that makes it writes the output itself. */
  output(name: string, value: Ref, dims: Dims, type: ElementType = 'float'): void {
    const made = this.#nodes.some(({ outputs }) => outputs.includes(value));
    const free = made && !this.#renamed.has(value);
    this.#renamed.set(free ? value : this.op('Identity', [value]), name);
    this.#outputs.push({ name, type, dims });
  }

  /** A node of one output; '' leaves an optional input out. */
  op(type: string, inputs: readonly Ref[], attributes: Readonly<Record<string, Attribute>> = {}): Ref {
    return this.ops(type, inputs, 1, attributes)[0]!;
  }

  /** A node of com.microsoft. */
  msOp(type: string, inputs: readonly Ref[], attributes: Readonly<Record<string, Attribute>> = {}): Ref {
    return this.ops(type, inputs, 1, attributes, microsoft)[0]!;
  }

  ops(
    type: string,
    inputs: readonly Ref[],
    outputs: number,
    attributes: Readonly<Record<string, Attribute>> = {},
    domain = '',
  ): Ref[] {
    const names = Array.from({ length: outputs }, (_, index) => `${type}_${this.#nodes.length}_${index}`);
    this.#nodes.push({ type, domain, inputs, outputs: names, attributes });
    return names;
  }

  /** Several outputs of a com.microsoft node. */
  msOps(type: string, inputs: readonly Ref[], outputs: number, attributes: Readonly<Record<string, Attribute>>): Ref[] {
    return this.ops(type, inputs, outputs, attributes, microsoft);
  }

  /** A node of an operator of our own; what it makes, in order. */
  own(operator: Operator, inputs: readonly Ref[]): Ref[] {
    this.#operators.set(operator.name, operator);
    return this.ops(operator.name, inputs, operator.outputs.length, {}, ownDomain);
  }

  /** int64 constant; a plain number is a scalar. */
  ints(values: number | readonly number[]): Ref {
    const list = typeof values === 'number' ? [values] : values;
    const dims = typeof values === 'number' ? [] : [list.length];
    return this.#constant('int64', dims, new Uint8Array(BigInt64Array.from(list, BigInt).buffer));
  }

  /** float constant; a plain number is a scalar. */
  floats(values: number | readonly number[], dims?: readonly number[]): Ref {
    const list = typeof values === 'number' ? [values] : values;
    const shape = dims ?? (typeof values === 'number' ? [] : [list.length]);
    return this.#constant('float', shape, new Uint8Array(Float32Array.from(list).buffer));
  }

  /** A constant called `name`, said to lie in `file`; whoever makes the session gives the real one. */
  elsewhere(name: string, dims: readonly number[], file: string, type: ElementType = 'float'): void {
    this.#constants.set(name, { name, type, dims, file });
  }

  cast(x: Ref, type: ElementType): Ref {
    return this.op('Cast', [x], { to: elementCode(type) });
  }

  /** 0 keeps a dimension, -1 is what is left. */
  reshape(x: Ref, dims: readonly number[]): Ref {
    return this.op('Reshape', [x, this.ints(dims)]);
  }

  transpose(x: Ref, perm: readonly number[]): Ref {
    return this.op('Transpose', [x], { perm });
  }

  slice(x: Ref, axis: number, from: number | Ref, to: number | Ref): Ref {
    const at = (value: number | Ref): Ref => (typeof value === 'number' ? this.ints([value]) : value);
    return this.op('Slice', [x, at(from), at(to), this.ints([axis])]);
  }

  concat(parts: readonly Ref[], axis: number): Ref {
    return this.op('Concat', parts, { axis });
  }

  /** Batched product; b transposed over its last two axes where `transB`, everything times `alpha`. */
  matmul(a: Ref, b: Ref, { transA = false, transB = false, alpha = 1 }: MatmulOptions = {}): Ref {
    if (!transA && !transB && alpha === 1) return this.op('MatMul', [a, b]);
    return this.msOp('FusedMatMul', [a, b], {
      transA: Number(transA),
      transB: Number(transB),
      alpha: { float: alpha },
    });
  }

  finish(name: string): Uint8Array {
    const final = (ref: Ref): string => this.#renamed.get(ref) ?? ref;
    return encodeModel({
      name,
      opsets: { '': 21, [microsoft]: 1, ...(this.#operators.size > 0 && { [ownDomain]: 1 }) },
      nodes: this.#nodes.map((node) => ({
        ...node,
        inputs: node.inputs.map(final),
        outputs: node.outputs.map(final),
      })),
      constants: [...this.#constants.values()],
      inputs: this.#inputs,
      outputs: this.#outputs,
    });
  }

  /** Equal constants are one. */
  #constant(type: ElementType, dims: readonly number[], bytes: Uint8Array): Ref {
    const id = `${type} [${dims.join()}] ${Buffer.from(bytes).toString('base64')}`;
    let constant = this.#constants.get(id);
    if (!constant) {
      constant = { name: `constant_${this.#constants.size}`, type, dims, bytes };
      this.#constants.set(id, constant);
    }
    return constant.name;
  }
}
