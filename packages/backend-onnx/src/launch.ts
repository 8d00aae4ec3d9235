import { DslaError } from '@dsla/spec';
import type { Tensor } from './binding/binding.js';
import type { Frame } from './frame.js';
import type { Gathered, HostInputs, Make } from './host-inputs.js';
import type { Kernel } from './kernel.js';
import type { ControlData, Port, Table } from './lowering.js';
import { pieceOf } from './nodes/stateful.js';
import type { Recorded } from './record.js';
import type { Served, ServedRow } from './rows.js';

/** One run of a session: all served rows, or a piece of one. */
export interface Launch {
  readonly kernel: Kernel;
  /** The row's index in the batch; absent where all rows are served. */
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
  const { stages, whole, dialect } = layer.program;
  const { rows, tokens } = served;
  const one = (kernel: Kernel, at: number): Launch => rowLaunch(kernel, run, rows[at]!, at, 0, rows[at]!.count);
  if (whole && rows.length === 1 && tokens === 1) return [one(layer.kernel(whole), 0)];
  const launches: Launch[] = [];
  for (const stage of stages) {
    if (stage.kind === 'shared') {
      const kernel = layer.kernel(stage.model);
      if (tokens > 0) launches.push({ kernel, run, firstRow: 0, rows: rows.length, start: 0, tokens });
      continue;
    }
    const fold = stage.node.op === 'foldState';
    for (const [at, row] of rows.entries()) {
      if (fold) launches.push(one(layer.kernel(stage.prefill), at));
      else if (row.count === 1) launches.push(one(layer.kernel(stage.decode), at));
      else if (row.count > 0) {
        // In pieces: the state goes from one to the next.
        const limit = pieceOf(stage.node, dialect, states);
        for (let from = 0; from < row.count; from += limit)
          launches.push(rowLaunch(layer.kernel(stage.prefill), run, row, at, from, Math.min(limit, row.count - from)));
      }
    }
  }
  return launches;
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
      return { memory, offset: offset + first * stride, type, dims: [1, count, width] };
    }
    case 'state': {
      const { tokens: capacity, parts } = states[source.state]!;
      const sizes = dims.map((size) => (size === 'tokens' ? capacity : (size as number)));
      return { memory: parts[firstRow]![source.part]!, offset: 0, type, dims: sizes };
    }
    default:
      return suppliedTensor(port, { served, states }, launch, supplies);
  }
}

/** What the host makes for a step, each tensor once. */
function suppliedTensor(
  { source, type }: Port,
  { served, states }: Pick<Recorded, 'served' | 'states'>,
  { run, firstRow, start, tokens }: Launch,
  { host, table }: Supplies,
): Tensor {
  switch (source.kind) {
    case 'ids':
      return host.get('ids', served.key, type, (runs) => idsOf(runs[run]!));
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
      const kind = tokens === 1 ? source.control.key : `${source.control.key} of ${tokens}`;
      const make: Make = (runs) =>
        source.control.make({ past: runs[run]!.served.rows[firstRow]!.past + from, count: tokens });
      return host.get(kind, slot * 2 ** 32 + past + from, type, make, source.control.onHost);
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
      if (source.part === 0) numbers.push(states[source.state]!.parts[firstRow]![0]!.id);
    } else {
      const { memory, dims } = suppliedTensor(port, { served, states }, launch, supplies);
      numbers.push(memory.id, ...dims);
    }
  }
  return numbers;
}

/** [1, tokens]: those of the batch, or what an earlier step drew. */
function idsOf({ served, ids }: Recorded): ControlData | Gathered {
  const dims = [1, served.tokens];
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
