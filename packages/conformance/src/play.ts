import {
  type AttentionLayer,
  type Device,
  type DeviceBuffer,
  f32,
  type Named,
  type Row,
  type StateStore,
  type Step,
} from '@dsla/spec';
import { integer, normals, type Spread } from './random.js';
import { floats, validEntries } from './states.js';
import { type Tape, weightsOfTapes } from './tape.js';
import { plannedWeights } from './weights.js';

/**
 * A row that carries the tokens of the sequence `text` (default: the number of its slot). Token ids and inputs depend on text
 * and position only, so that the same sequence can be cut into steps in different ways.
 */
export interface Piece extends Row {
  readonly text?: number;
}

/** A tape to run, by name, for all rows or some. */
export interface Run {
  readonly tape: string;
  readonly rows?: readonly number[];
}

export interface PlayOptions {
  readonly slots?: number;
  readonly tokens?: number;
  /** Distribution of inputs by name; mean 0, std 1 if absent. */
  readonly inputs?: Named<Spread>;
}

/** Tapes on a device, with stores for all their states. */
export interface Player extends Disposable {
  readonly device: Device;
  readonly layers: Named<AttentionLayer>;
  readonly stores: Named<StateStore>;
  /** Runs the tapes (default: all, in order, for all rows) and returns every named output. */
  step(pieces: readonly Piece[], runs?: readonly Run[]): Promise<Named<Float32Array>>;
  /** A step with these runs recorded, not yet submitted. Its inputs are freed by the next `step`, or with the player. */
  begin(pieces: readonly Piece[], runs?: readonly Run[]): Step;
  /** What a slot holds of every state after `length` tokens: specified entries only. */
  states(slot: number, length: number): Promise<Named<Float32Array>>;
}

export async function load(device: Device, tapes: readonly Tape[], options: PlayOptions = {}): Promise<Player> {
  const { slots = 4, tokens = 160 } = options;
  const source = plannedWeights(weightsOfTapes(tapes));
  const layers: Record<string, AttentionLayer> = {};
  const stores: Record<string, StateStore> = {};
  const uploads: DeviceBuffer[] = [];
  const all = tapes.map(({ graph }) => ({ tape: graph.name }));
  const player: Player = {
    device,
    layers,
    stores,
    begin(pieces, runs = all) {
      const ran = runs.map(({ tape }) => tapes.find(({ graph }) => graph.name === tape)!);
      const values = inputsOf(device, ran, pieces, options.inputs ?? {});
      uploads.push(...Object.values(values));
      const step = device.beginStep({ rows: pieces, ids: idsOf(tapes, pieces) }, values);
      try {
        for (const { tape, rows } of runs) step.run(layers[tape]!, stores, rows);
      } catch (error) {
        step[Symbol.dispose]();
        throw error;
      }
      return step;
    },
    async step(pieces, runs = all) {
      using step = player.begin(pieces, runs);
      await step.submit();
      const outputs: Record<string, Float32Array> = {};
      for (const name of outputsOf(tapes.filter(({ graph }) => runs.some(({ tape }) => tape === graph.name))))
        outputs[name] = floats(await device.download(step.value(name)));
      for (const upload of uploads.splice(0)) upload[Symbol.dispose]();
      return outputs;
    },
    async states(slot, length) {
      const found: Record<string, Float32Array> = {};
      for (const [name, store] of Object.entries(stores)) {
        const parts = validEntries(store, tapes, length, await store.export(slot));
        for (const [part, values] of Object.entries(parts)) found[`${name}.${part}`] = values;
      }
      return found;
    },
    [Symbol.dispose]() {
      for (const item of [...uploads.splice(0), ...Object.values(layers), ...Object.values(stores)])
        item[Symbol.dispose]();
    },
  };
  try {
    for (const { graph } of tapes) {
      const reasons = device.unsupported(graph);
      if (reasons.length > 0) throw new Error(`unsupported: ${reasons.join(' | ')}`);
      layers[graph.name] = await device.compile(graph, source);
      for (const spec of graph.states) stores[spec.name] ??= device.createState(spec, slots, tokens);
    }
    return player;
  } catch (error) {
    player[Symbol.dispose]();
    throw error;
  }
}

/** Names that the tapes write. */
function outputsOf(tapes: readonly Tape[]): ReadonlySet<string> {
  return new Set(
    tapes.flatMap(({ graph }) => graph.nodes.flatMap((node) => (node.op === 'output' ? [node.name] : []))),
  );
}

/** Inputs that no tape before them writes, one vector a token. */
function inputsOf(
  device: Device,
  tapes: readonly Tape[],
  pieces: readonly Piece[],
  spreads: Named<Spread>,
): Record<string, DeviceBuffer> {
  const values: Record<string, DeviceBuffer> = {};
  const written = new Set<string>();
  if (pieces.every(({ count }) => count === 0)) return values;
  for (const { graph } of tapes) {
    for (const node of graph.nodes) {
      if (node.op === 'output') written.add(node.name);
      if (node.op !== 'input' || written.has(node.name) || values[node.name]) continue;
      const rows = positions(pieces).map(({ text, position }) =>
        normals(`${node.name} ${text} ${position}`, node.width, spreads[node.name]),
      );
      const data = new Float32Array(rows.length * node.width);
      rows.forEach((row, index) => {
        data.set(row, index * node.width);
      });
      values[node.name] = device.upload(f32([rows.length, node.width], data));
    }
  }
  return values;
}

/** Token ids below the smallest vocabulary of the tapes' tables; 0 where nothing is embedded. */
function idsOf(tapes: readonly Tape[], pieces: readonly Piece[]): Int32Array {
  const tables = tapes.flatMap(({ graph, weights }) =>
    graph.nodes.flatMap((node) => (node.op === 'embed' ? [weights[node.table]!.shape[0]!] : [])),
  );
  const vocabulary = Math.min(...tables);
  return Int32Array.from(
    positions(pieces).map(({ text, position }) =>
      tables.length > 0 ? integer(`id ${text} ${position}`, vocabulary) : 0,
    ),
  );
}

function positions(pieces: readonly Piece[]): { readonly text: number; readonly position: number }[] {
  return pieces.flatMap(({ text, slot, past, count }) =>
    Array.from({ length: count }, (_, index) => ({ text: text ?? slot, position: past + index })),
  );
}
