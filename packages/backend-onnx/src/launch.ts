import { DslaError } from '@dsla/spec';
import type { Memory, Tensor } from './binding/binding.js';
import { ofRows } from './emit.js';
import type { Frame } from './frame.js';
import type { Gathered, HostInputs, Make } from './host-inputs.js';
import type { Kernel } from './kernel.js';
import type { ControlData, Port, Table } from './lowering.js';
import type { Model } from './model.js';
import { pieceOf } from './nodes/stateful.js';
import type { Recorded } from './record.js';
import type { Served, ServedRow } from './rows.js';

/** One run of a session: served rows, or a piece of one. */
export interface Launch {
  readonly kernel: Kernel;
  /** The row's index in the batch; absent where several are served. */
  readonly row?: number;
  /** First row, and how many, of those served. */
  readonly firstRow: number;
  readonly rows: number;
  /** First token, and how many, of those served. */
  readonly start: number;
  readonly tokens: number;
  /** Which of the step's runs it belongs to. */
  readonly run: number;
}

/** What the sessions of a layer are to do for the rows it serves, in order. `run`: its place in the step. */
export function launchesOf({ layer, served, states }: Recorded, run: number): Launch[] {
  const { stages, dialect } = layer.program;
  const { rows, tokens } = served;
  const one = (kernel: Kernel, at: number): Launch => rowLaunch(kernel, run, rows[at]!, at, 0, rows[at]!.count);
  /** One token of each of `count` rows. */
  const together = (model: Model, at: number, count: number): Launch => {
    if (count === 1) return one(layer.kernel(model), at);
    return { kernel: layer.kernel(model), run, firstRow: at, rows: count, start: rows[at]!.start, tokens: count };
  };
  const whole = (rows.length === 1 && layer.program.single) || layer.program.whole;
  if (whole && rows.length > 0 && besides(whole, served, states, 0) === rows.length)
    return [together(whole, 0, rows.length)];
  const launches: Launch[] = [];
  for (const stage of stages) {
    if (stage.kind === 'shared') {
      const kernel = layer.kernel(stage.model);
      if (tokens > 0) launches.push({ kernel, run, firstRow: 0, rows: rows.length, start: 0, tokens });
      continue;
    }
    const fold = stage.node.op === 'foldState';
    let next = 0;
    for (const [at, row] of rows.entries()) {
      if (at < next) continue;
      next = at + 1;
      if (fold) launches.push(one(layer.kernel(stage.prefill), at));
      else if (row.count === 1) {
        next = at + besides(stage.decode, served, states, at);
        launches.push(together(stage.decode, at, next - at));
      } else if (row.count > 0) {
        // In pieces: the state goes from one to the next.
        for (let from = 0, tokens = 0; from < row.count; from += tokens) {
          tokens = pieceOf(stage.node, dialect, states, row.count - from);
          launches.push(rowLaunch(layer.kernel(stage.prefill), run, row, at, from, tokens));
        }
      }
    }
  }
  return launches;
}

/** How many rows from one on have one token and slots side by side, so that the model serves them at once. */
function besides({ joins }: Model, { rows }: Served, states: Recorded['states'], at: number): number {
  if (rows[at]!.count !== 1) return 0;
  let end = at + 1;
  while (joins && rows[end]?.count === 1 && rows[end]!.slot === rows[end - 1]!.slot + 1) end += 1;
  const whole = Object.values(states).every(({ parts }) => parts[at]!.every((part) => spanOf(part, end - at)));
  return whole ? end - at : 1;
}

function spanOf(memory: Memory, rows: number): Memory | undefined {
  return rows === 1 ? memory : memory.beside?.(rows);
}

function rowLaunch(kernel: Kernel, run: number, row: ServedRow, at: number, from: number, tokens: number): Launch {
  return { kernel, run, row: row.index, firstRow: at, rows: 1, start: row.start + from, tokens };
}

/** By launch, the values of the tape that no later one reads or writes. */
export function lastUses(launches: readonly Launch[]): readonly (readonly number[])[] {
  const last = new Map<number, number>();
  for (const [at, { kernel }] of launches.entries())
    for (const { source } of kernel.ports) if (source.kind === 'value') last.set(source.value, at);
  const byLaunch: number[][] = launches.map(() => []);
  for (const [value, at] of last) byLaunch[at]!.push(value);
  return byLaunch;
}

/** What a step offers to its launches. */
export interface Supplies {
  readonly host: HostInputs;
  /** Long enough for every row of the step. */
  table(table: Table): Tensor;
}

/** The tensor that a port of a launch stands for. */
export function tensorOf(
  port: Port,
  launch: Launch,
  frame: Frame,
  { served, states }: Recorded,
  supplies: Supplies,
): Tensor {
  const { source, type, dims } = port;
  const { firstRow, rows, start, tokens } = launch;
  switch (source.kind) {
    case 'value': {
      const { memory, offset, width, stride, place } = frame.storage(source.value);
      const [first, count] = place === 'token' ? [start, tokens] : [firstRow, rows];
      const sizes = launch.kernel.model.decode ? [count, 1, width] : [1, count, width];
      return { memory, offset: offset + first * stride, type, dims: sizes };
    }
    case 'state': {
      const { tokens: capacity, parts } = states[source.state]!;
      const sizes = dims.map((size) => {
        if (typeof size === 'number') return size;
        return size === 'tokens' ? capacity : ofRows(size)! * rows;
      });
      return { memory: spanOf(parts[firstRow]![source.part]!, rows)!, offset: 0, type, dims: sizes };
    }
    default:
      return suppliedTensor(port, { served, states }, launch, supplies);
  }
}

/** What the host makes for a step, each tensor once. */
function suppliedTensor(
  { source, type }: Port,
  { served, states }: Pick<Recorded, 'served' | 'states'>,
  { kernel, run, firstRow, rows, start, tokens }: Launch,
  { host, table }: Supplies,
): Tensor {
  switch (source.kind) {
    case 'ids': {
      const { decode } = kernel.model;
      const dims = decode ? [served.tokens, 1] : [1, served.tokens];
      return host.get(`ids ${decode}`, served.key, type, (runs) => idsOf(runs[run]!, dims));
    }
    case 'draw':
      return host.get(`draw ${source.name}`, run, type, (runs) => source.make(runs[run]!.draws!), source.onHost);
    case 'capacity': {
      const { tokens: capacity } = states[source.state]!;
      return host.get('capacity', capacity, type, () => ({ dims: [], data: Int32Array.of(capacity) }), true);
    }
    case 'last':
      return host.get('last', served.key, type, (runs) => lastTokens(runs[run]!.served));
    case 'control': {
      const { past, slot, start: first } = served.rows[firstRow]!;
      const from = start - first;
      // Nodes may cut a row at different places.
      const kind = `${source.control.key} of ${tokens}`;
      const { control } = source;
      if (rows === 1) {
        const make: Make = (runs) =>
          control.make({ past: runs[run]!.served.rows[firstRow]!.past + from, count: tokens });
        return host.get(kind, slot * 2 ** 32 + past + from, type, make, control.onHost);
      }
      const joined: Make = (runs) => {
        const served = runs[run]!.served.rows.slice(firstRow, firstRow + rows);
        return joinedData(served.map((row) => control.make({ past: row.past, count: 1 })));
      };
      return host.get(`${control.key} of rows`, `${served.key} ${firstRow} ${rows}`, type, joined, control.onHost);
    }
    case 'table':
      return table(source.table);
    default:
      throw new DslaError('E_INTERNAL', { where: 'onnx', rule: 'weights are bound once', got: source.kind });
  }
}

/** Numbers that tell the tensors of a launch from those of any other: which memory, where in it, how much. */
export function identityOf(launch: Launch, frame: Frame, { served, states }: Recorded, supplies: Supplies): number[] {
  const { kernel, firstRow, rows, start, tokens } = launch;
  const numbers: number[] = [];
  for (const port of kernel.ports) {
    const { source } = port;
    if (source.kind === 'value') {
      const { memory, offset, stride, place } = frame.storage(source.value);
      const [first, count] = place === 'token' ? [start, tokens] : [firstRow, rows];
      numbers.push(memory.id, offset + first * stride, count);
    } else if (source.kind === 'state') {
      // The parts of a slot come and go together.
      if (source.part === 0) numbers.push(spanOf(states[source.state]!.parts[firstRow]![0]!, rows)!.id);
    } else {
      const { memory, dims } = suppliedTensor(port, { served, states }, launch, supplies);
      numbers.push(memory.id, ...dims);
    }
  }
  return numbers;
}

/** What a control makes of several rows, joined along the first axis; without axes the largest. */
function joinedData(each: readonly ControlData[]): ControlData {
  const [{ dims, data }] = each as [ControlData];
  const length = dims.length === 0 ? 1 : each.length * data.length;
  const joined = new (data.constructor as new (length: number) => typeof data)(length);
  if (dims.length === 0) {
    joined[0] = Math.max(...each.map(({ data: [own] }) => Number(own)));
    return { dims, data: joined };
  }
  for (const [row, { data: own }] of each.entries()) joined.set(own as never, row * own.length);
  return { dims: [dims[0]! * each.length, ...dims.slice(1)], data: joined };
}

/** Those of the batch, or what an earlier step drew. */
function idsOf({ served, ids }: Recorded, dims: readonly number[]): ControlData | Gathered {
  if (!ids) return { dims, data: served.ids };
  const { buffer, stride } = ids;
  return {
    dims,
    pieces: served.rows.map(({ first, count }) => [buffer.memory, first * stride, count * stride] as const),
  };
}

/** A row without tokens in this step points at the first token. */
function lastTokens({ rows }: Served): ControlData {
  const data = BigInt64Array.from(rows, ({ start, count }) => BigInt(Math.max(start + count - 1, 0)));
  return { dims: [rows.length], data };
}
