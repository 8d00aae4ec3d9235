import { type Node, type NodeOf, operandsOf, type StatePart, type Weight } from '@dsla/spec';
import type { Operator } from './cuda/operator.js';
import { type Dialect, partType, type Quantised } from './dialect.js';
import { type Dims, GraphBuilder, ofRows, type Ref } from './emit.js';
import { invalid } from './errors.js';
import type { Control, Derivation, Lowering, Port, Source, Table } from './lowering.js';
import { isStateful, joinsRows, lowerStateful } from './nodes/stateful.js';
import { lowerTokenWise, type TokenWise } from './nodes/token-wise.js';
import { isOwnLinear, ownLinear } from './own.js';
import { float } from './protobuf.js';
import { bitsOf, blockSize, blocksOf, hasBlocks } from './quantise.js';
import type { Tape } from './tape.js';

/** One ONNX model and what its inputs and outputs stand for. */
export interface Model {
  readonly name: string;
  readonly inputs: readonly Port[];
  /** Weights that the session gets once, as constants, and rearranges for itself. */
  readonly matrices: readonly Port[];
  readonly outputs: readonly Port[];
  /** Of our own that it uses. */
  readonly operators: readonly Operator[];
  /** It serves exactly one token of each of its rows. */
  readonly decode: boolean;
  /** Of more than one row. */
  readonly joins: boolean;
  encode(): Uint8Array;
}

export interface ModelOptions {
  /** It will serve exactly one token of each of its rows. */
  readonly decode: boolean;
  /** File that the matrices of linear nodes are said to lie in; without it they are inputs like all other weights. */
  readonly standIn: string | undefined;
  readonly dialect: Dialect;
}

/** The nodes `indices` of a tape as one model; values of other nodes come in, values that others want go out. */
export function modelOf(tape: Tape, name: string, indices: readonly number[], options: ModelOptions): Model {
  const writer = new ModelWriter(tape, options);
  for (const index of indices) writer.add(index, indices);
  return writer.finish(name);
}

class ModelWriter implements Lowering {
  readonly graph: GraphBuilder = new GraphBuilder();
  readonly decode: boolean;
  readonly dialect: Dialect;
  readonly #tape: Tape;
  readonly #standIn: string | undefined;
  readonly #inputs = new Map<string, Port>();
  readonly #matrices = new Map<string, Port>();
  readonly #outputs: Port[] = [];
  #joins: boolean;
  /** What the values made here are called. */
  readonly #made = new Map<number, Ref>();

  constructor(tape: Tape, { decode, standIn, dialect }: ModelOptions) {
    this.#tape = tape;
    this.decode = decode;
    this.dialect = dialect;
    this.#standIn = standIn;
    this.#joins = decode;
  }

  add(index: number, inside: readonly number[]): void {
    const { nodes } = this.#tape.graph;
    const node = nodes[index]!;
    if (node.op === 'input' || node.op === 'output') return;
    const ref = this.#made.get(index) ?? this.#fused(index, inside) ?? this.#lowered(node);
    if (ref === undefined) return;
    this.#made.set(index, ref);
    const wanted = nodes.some(
      (user, at) => (user.op === 'output' || !inside.includes(at)) && operandsOf(user).includes(index),
    );
    if (wanted) this.#send({ ...this.#valuePort(index), name: `out ${index}` }, ref);
  }

  #lowered(node: Node): Ref | undefined {
    if (isOwnLinear(node)) return ownLinear(node, this, this.#value);
    if (isStateful(node)) {
      this.#joins &&= joinsRows(node, this.dialect);
      return lowerStateful(node, this, this.#value);
    }
    return lowerTokenWise(node as TokenWise, this, {
      ids: () =>
        this.#bring({
          name: 'ids',
          source: { kind: 'ids' },
          type: 'int32',
          dims: this.decode ? ['1 rows', 1] : [1, 'tokens'],
        }),
      last: () => this.#bring({ name: 'last', source: { kind: 'last' }, type: 'int64', dims: ['rows'] }),
      value: this.#value,
    });
  }

  /** A residual sum and the norm of it in one node, which makes the values of both. */
  #fused(index: number, inside: readonly number[]): Ref | undefined {
    const { nodes } = this.#tape.graph;
    const sum = nodes[index]!;
    if (sum.op !== 'add') return undefined;
    const at = inside.find((user) => nodes[user]!.op === 'rmsNorm' && operandsOf(nodes[user]!)[0] === index);
    if (at === undefined) return undefined;
    const norm = nodes[at] as NodeOf<'rmsNorm'>;
    const operands = [this.#value(sum.a), this.#value(sum.b), this.weight(norm.weight)];
    const outputs = this.graph.msOps('SkipSimplifiedLayerNormalization', operands, 4, { epsilon: float(norm.eps) });
    this.#made.set(at, outputs[0]!);
    return outputs[3]!;
  }

  finish(name: string): Model {
    for (const { name: input, type, dims } of this.#inputs.values()) this.graph.input(input, type, dims);
    for (const { name: matrix, dims, type } of this.#matrices.values())
      this.graph.elsewhere(matrix, dims as readonly number[], this.#standIn!, type);
    return {
      name,
      inputs: [...this.#inputs.values()],
      matrices: [...this.#matrices.values()],
      outputs: this.#outputs,
      operators: this.graph.operators,
      decode: this.decode,
      joins: this.#joins,
      encode: () => this.graph.finish(name),
    };
  }

  readonly float = (x: Ref): Ref => (this.dialect.compute === 'float' ? x : this.graph.cast(x, 'float'));

  readonly compute = (x: Ref): Ref => (this.dialect.compute === 'float' ? x : this.graph.cast(x, this.dialect.compute));

  readonly shapeOf = (weight: Weight): readonly number[] => this.#tape.shapeOf(weight);

  readonly rows = (count: number): number | string => (this.decode ? `${count} rows` : count);

  readonly widthOf = (state: string, part: number): number => this.#partOf(state, part)!.shape.at(-1) as number;

  readonly entriesOf = (state: string): number | string => this.#partOf(state, 0)!.shape[1]!;

  readonly weight = (weight: Weight, derivation?: Derivation): Ref => {
    const shape = this.shapeOf(weight);
    const source: Source = derivation ? { kind: 'weight', weight, derivation } : { kind: 'weight', weight };
    const name = derivation ? `weight ${weight} ${derivation.name}` : `weight ${weight}`;
    if (derivation) return this.#bring({ name, source, type: 'float', dims: derivation.shape(shape) });
    return this.#bring({ name, source, type: this.dialect.compute, dims: shape });
  };

  readonly floatWeight = (weight: Weight): Ref =>
    this.dialect.compute === 'float' ? this.weight(weight) : this.weight(weight, inFloat);

  readonly product = (x: Ref, weight: Weight): Ref => {
    const shape = this.shapeOf(weight);
    const { weights, compute } = this.dialect;
    if (weights === undefined || !hasBlocks(shape))
      return this.graph.matmul(x, this.#constantMatrix(weight), { transB: true });
    // On CUDA a session that decodes keeps a copy, rearranged for few rows, which is faster for 8 bits only.
    const constant = this.decode && weights === 'q8' && compute === 'float16' && this.#standIn !== undefined;
    const [N, K] = shape as [number, number];
    const options = { K, N, bits: bitsOf(weights), block_size: blockSize };
    return this.graph.msOp('MatMulNBits', [x, ...this.#blocks(weight, weights, constant)], options);
  };

  readonly matrix = (weight: Weight): readonly Ref[] => {
    const { weights } = this.dialect;
    return weights && hasBlocks(this.shapeOf(weight)) ? this.#blocks(weight, weights, false) : [this.weight(weight)];
  };

  /** Codes and scales. */
  #blocks(weight: Weight, format: Quantised, constant: boolean): Ref[] {
    return Object.entries(blocksOf(format, this.dialect.compute)).map(([part, derivation]) => {
      const source: Source = { kind: 'weight', weight, derivation };
      const { type } = derivation.view;
      const port: Port = { name: `${part} ${weight}`, source, type, dims: derivation.shape(this.shapeOf(weight)) };
      return constant ? this.#constant(port) : this.#bring(port);
    });
  }

  #constantMatrix(weight: Weight): Ref {
    if (this.#standIn === undefined) return this.weight(weight);
    const { compute: type } = this.dialect;
    const source: Source = { kind: 'weight', weight };
    return this.#constant({ name: `matrix ${weight}`, source, type, dims: this.shapeOf(weight) });
  }

  #constant(port: Port): Ref {
    this.#matrices.set(port.name, port);
    return port.name;
  }

  readonly control = (control: Control): Ref => {
    const { key, type } = control;
    const [lead, ...rest] = control.dims;
    const dims = this.decode && lead !== undefined ? ['1 rows', ...rest] : control.dims;
    return this.#bring({ name: `control ${key}`, source: { kind: 'control', control }, type, dims });
  };

  readonly capacity = (state: string): Ref =>
    this.#bring({ name: `capacity ${state}`, source: { kind: 'capacity', state }, type: 'int32', dims: [] });

  readonly table = (table: Table): Ref => {
    const dims = ['positions', table.width];
    return this.#bring({ name: `table ${table.key}`, source: { kind: 'table', table }, type: table.type, dims });
  };

  readonly past = (state: string, part: number, dims: Dims): Ref => this.#bring(this.#statePort(state, part, dims));

  readonly present = (state: string, part: number, value: Ref, dims: Dims): void =>
    this.#send({ ...this.#statePort(state, part, dims), name: `next ${state} ${part}` }, value);

  readonly #value = (index: number): Ref => this.#made.get(index) ?? this.#bring(this.#valuePort(index));

  #bring(port: Port): Ref {
    if (!this.#inputs.has(port.name)) this.#inputs.set(port.name, port);
    return port.name;
  }

  #send(port: Port, ref: Ref): void {
    this.graph.output(port.name, ref, port.dims, port.type);
    this.#outputs.push(port);
  }

  #valuePort(value: number): Port {
    const width = this.#tape.widths[value]!;
    const dims = this.decode ? ['1 rows', 1, width] : [1, `tokens ${value}`, width];
    return { name: `value ${value}`, source: { kind: 'value', value }, type: this.dialect.compute, dims };
  }

  /** @throws DslaError E_INPUT where the state is not laid out as its node reads it. */
  #statePort(state: string, part: number, dims: Dims): Port {
    const spec = this.#partOf(state, part);
    const got = spec?.shape;
    if (!spec || !got || layout(got) !== layout(dims)) {
      const where = `${this.#tape.graph.name} state ${state}`;
      throw invalid(where, `part ${part} must be laid out as [${dims.join(', ')}]`, got ?? 'no such part');
    }
    const type = partType(this.dialect, spec.dtype);
    return { name: `state ${state} ${part}`, source: { kind: 'state', state, part }, type, dims };
  }

  #partOf(state: string, part: number): StatePart | undefined {
    return this.#tape.graph.states.find(({ name }) => name === state)?.parts[part];
  }
}

const inFloat: Derivation = { name: 'in float', shape: (shape) => shape, apply: (data) => data };

/** Number of elements of a row, and which of the sizes are open. */
function layout(shape: Dims): string {
  const sizes = shape.map((size) => (typeof size === 'number' ? size : (ofRows(size) ?? 1)));
  const open = shape.filter((size) => typeof size === 'string' && ofRows(size) === undefined);
  return [sizes.reduce((a, b) => a * b, 1), ...open].join();
}
