import type { Draw } from '@dsla/spec';
import { drawOperator } from './cuda/draw.js';
import type { Dialect } from './dialect.js';
import { GraphBuilder, type Ref } from './emit.js';
import type { ControlData, Port } from './lowering.js';
import type { Model } from './model.js';
import type { ElementType } from './protobuf.js';

// Tokens drawn from logits [rows, V] where those lie, as one model; only what its rows ask for is in it.

/** Which limits any row has; `greedy`: all rows take the most likely token. */
export interface Drawing {
  readonly greedy: boolean;
  readonly k: boolean;
  readonly p: boolean;
  /** Its nucleus is of all tokens, not of the k most likely. */
  readonly whole: boolean;
}

export function drawingOf(draws: readonly Draw[]): Drawing {
  const free = draws.filter(({ temperature }) => temperature > 0);
  const nuclei = free.filter(({ topP = 1 }) => topP < 1);
  return {
    greedy: free.length === 0,
    k: free.some(({ topK }) => topK !== undefined),
    p: nuclei.length > 0,
    whole: nuclei.some(({ topK }) => topK === undefined),
  };
}

/** Longest stretch that is summed up one by one. */
const block = 128;

/** Whether an operator of our own draws, whatever the rows ask for: of 32 rows ONNX Runtime's reductions take milliseconds. */
export function drawsOwn({ compute, operators }: Dialect): boolean {
  return operators && compute === 'float16';
}

/** Logits, value 0 of the tape, to ids int32, value 1. The logits are of the compute type. Without a drawing by an operator of our own. */
export function drawModel(vocabulary: number, drawing: Drawing | undefined, type: ElementType): Model {
  const writer = new DrawWriter(vocabulary, type);
  return drawing ? writer.finish(writer.ids(drawing)) : writer.own();
}

/** What the operator reads, [R, 4]: temperature, k, p, uniform. Of rows that take the most likely token all the same. */
export function settingsOf(draws: readonly Draw[], vocabulary: number): Float32Array {
  return Float32Array.from(
    draws.flatMap(({ temperature, topK = vocabulary, topP = 1, uniform }) =>
      temperature === 0 ? [0, 0, 0, 0] : [temperature, Math.min(topK, vocabulary), topP, uniform],
    ),
  );
}

class DrawWriter {
  readonly #graph = new GraphBuilder();
  readonly #vocabulary: number;
  readonly #inputs: Port[];
  /** [R, V] */
  readonly #logits: Ref;
  readonly #type: ElementType;

  constructor(vocabulary: number, type: ElementType) {
    const dims = [1, 'rows', vocabulary];
    this.#vocabulary = vocabulary;
    this.#inputs = [{ name: 'logits', source: { kind: 'value', value: 0 }, type, dims }];
    this.#graph.input('logits', type, dims);
    this.#type = type;
    this.#logits = this.#graph.reshape('logits', [-1, vocabulary]);
  }

  /** [R, 1], float */
  ids(drawing: Drawing): Ref {
    const g = this.#graph;
    const x = this.#logits;
    const most = this.#reduce('ReduceMax', x);
    const first = this.#first(g.op('Equal', [x, most]), x);
    if (drawing.greedy) return first;
    const wide = (y: Ref): Ref => (this.#type === 'float' ? y : g.cast(y, 'float'));
    const sampled = this.#sampled(wide(x), wide(most), drawing);
    const settled = g.op('Or', [this.#row('greedy', 'bool', isGreedy), g.op('Less', [first, g.floats(0)])]);
    return g.op('Where', [settled, first, sampled]);
  }

  own(): Model {
    const settings = this.#bring('settings', 'float', ['rows', 4], (draws) => ({
      dims: [draws.length, 4],
      data: settingsOf(draws, this.#vocabulary),
    }));
    return this.#model(this.#graph.own(drawOperator(this.#vocabulary), ['logits', settings])[0]!);
  }

  finish(ids: Ref): Model {
    const graph = this.#graph;
    return this.#model(graph.cast(graph.reshape(ids, [1, -1, 1]), 'int32'));
  }

  /** ids: int32 [1, R, 1] */
  #model(ids: Ref): Model {
    const graph = this.#graph;
    const dims = [1, 'rows', 1];
    graph.output('ids', ids, dims, 'int32');
    return {
      name: 'draw',
      decode: false,
      joins: false,
      inputs: this.#inputs,
      matrices: [],
      operators: graph.operators,
      outputs: [{ name: 'ids', source: { kind: 'value', value: 1 }, type: 'int32', dims }],
      encode: () => graph.finish('draw'),
    };
  }

  #sampled(x: Ref, most: Ref, drawing: Drawing): Ref {
    const g = this.#graph;
    const temperature = this.#row('temperature', 'float', ({ temperature: t }) => t || 1);
    const weigh = (logits: Ref): Ref => g.op('Exp', [g.op('Div', [g.op('Sub', [logits, most]), temperature])]);
    const above = (weights: Ref, logits: Ref, least: Ref): Ref =>
      g.op('Where', [g.op('GreaterOrEqual', [logits, least]), weights, g.floats(0)]);
    let weights = weigh(x);
    if (drawing.k || drawing.p) {
      const sorted = g.ops('TopK', [x, this.#most(drawing.whole)], 2, { axis: -1 })[0]!;
      const entry = (at: Ref): Ref => g.op('GatherElements', [sorted, at], { axis: 1 });
      const unless = (free: Ref, least: Ref): Ref => g.op('Where', [free, g.floats(Number.NEGATIVE_INFINITY), least]);
      let limited = weigh(sorted);
      if (drawing.k) {
        const kth = entry(this.#row('k - 1', 'int64', ({ topK }) => Math.min(topK ?? 1, this.#vocabulary) - 1));
        const least = unless(
          this.#row('any k', 'bool', ({ topK }) => Number(topK === undefined)),
          kth,
        );
        weights = above(weights, x, least);
        limited = above(limited, sorted, least);
      }
      if (drawing.p) {
        const sums = drawing.whole ? this.#sums(limited) : g.op('CumSum', [limited, g.ints(1)]);
        const reached = g.op('Div', [sums, this.#reduce('ReduceSum', weights)]);
        const before = this.#count(g.op('Less', [reached, this.#row('p', 'float', ({ topP = 1 }) => topP)]));
        const last = g.op('Sub', [this.#count(g.op('Equal', [sorted, sorted])), g.floats(1)]);
        const pth = entry(g.cast(g.op('Min', [before, last]), 'int64'));
        weights = above(
          weights,
          x,
          unless(
            this.#row('any p', 'bool', ({ topP = 1 }) => Number(topP === 1)),
            pth,
          ),
        );
      }
    }
    const mass = g.op('Mul', [
      this.#reduce('ReduceSum', weights),
      this.#row('uniform', 'float', ({ uniform }) => uniform),
    ]);
    const positive = g.op('Greater', [weights, g.floats(0)]);
    const exceeding = g.op('Greater', [this.#sums(weights), mass]);
    const found = this.#first(g.op('And', [positive, exceeding]));
    // Rounding may leave the sum a little below the mass: then it is the last token.
    const last = this.#reduce('ReduceMax', g.op('Where', [positive, this.#numbers(), g.floats(0)]));
    return g.op('Min', [found, last]);
  }

  /** Index of the first true one, the vocabulary without any; -1 where a logit is not a number. */
  #first(hits: Ref, logits?: Ref): Ref {
    const g = this.#graph;
    const found = g.op('Where', [hits, this.#numbers(), g.floats(this.#vocabulary)]);
    return this.#reduce('ReduceMin', logits ? g.op('Where', [g.op('IsNaN', [logits]), g.floats(-1), found]) : found);
  }

  #count(hits: Ref): Ref {
    return this.#reduce('ReduceSum', this.#graph.cast(hits, 'float'));
  }

  /** [R, N] -> [R, 1] */
  #reduce(op: 'ReduceMax' | 'ReduceMin' | 'ReduceSum', x: Ref): Ref {
    return this.#graph.op(op, [x, this.#graph.ints([-1])], { keepdims: 1 });
  }

  /** Sums of [R, V] up to every entry, in blocks: one by one a long row would be slow. */
  #sums(x: Ref): Ref {
    const g = this.#graph;
    const size = this.#vocabulary;
    const missing = Math.ceil(size / block) * block - size;
    const padded = missing === 0 ? x : g.op('Pad', [x, g.ints([0, missing]), '', g.ints([1])]);
    const blocks = g.op('Reshape', [padded, g.ints([0, -1, block])]); // [R, n, block]
    const inside = g.op('CumSum', [blocks, g.ints(2)]);
    const totals = g.op('ReduceSum', [blocks, g.ints([2])], { keepdims: 1 });
    const all = g.op('Add', [inside, g.op('CumSum', [totals, g.ints(1)], { exclusive: 1 })]);
    return g.slice(g.op('Reshape', [all, g.ints([0, -1])]), 1, 0, size);
  }

  /** [V]: 0, 1, 2... */
  #numbers(): Ref {
    return this.#graph.floats(Array.from({ length: this.#vocabulary }, (_, id) => id));
  }

  /** What every row asks for, [R, 1]. */
  #row(name: string, type: ElementType, of: (draw: Draw) => number): Ref {
    return this.#bring(name, type, ['rows', 1], (draws) => ({
      dims: [draws.length, 1],
      data: typed(type, draws.map(of)),
    }));
  }

  /** How many of the most likely tokens are looked at, [1]. */
  #most(whole: boolean): Ref {
    if (whole) return this.#graph.ints([this.#vocabulary]);
    const most = ({ topK = 1 }: Draw): number => Math.min(topK, this.#vocabulary);
    return this.#bring(
      'most',
      'int64',
      [1],
      (draws) => ({ dims: [1], data: BigInt64Array.of(BigInt(Math.max(...draws.map(most)))) }),
      true,
    );
  }

  #bring(
    name: string,
    type: ElementType,
    dims: readonly (number | string)[],
    make: (draws: readonly Draw[]) => ControlData,
    onHost: boolean = false,
  ): Ref {
    this.#inputs.push({ name, source: { kind: 'draw', name, make, onHost }, type, dims });
    return this.#graph.input(name, type, dims);
  }
}

const isGreedy = ({ temperature }: Draw): number => Number(temperature === 0);

function typed(type: ElementType, values: readonly number[]): ControlData['data'] {
  if (type === 'bool') return Uint8Array.from(values);
  return type === 'int64' ? BigInt64Array.from(values, BigInt) : Float32Array.from(values);
}
