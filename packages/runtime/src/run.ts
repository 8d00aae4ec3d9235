import { fromFloat16, type HostTensor, type Row, type StepBatch, throwIfAborted } from '@dsla/spec';
import { forward, type HeadRun } from './forward.js';
import type { Program } from './program.js';
import { closed, type OwnSequence } from './slots.js';

export interface RunOptions {
  /** Logits of the last token of every input (the default), of all tokens, or none. */
  readonly logits?: 'last' | 'all' | 'none';
  readonly signal?: AbortSignal | undefined;
}

export interface OwnInput {
  readonly sequence: OwnSequence;
  readonly ids: Int32Array;
}

export interface StepLimits {
  readonly vocabulary: number;
  /** Most tokens of one step, single ones of many rows aside. */
  readonly stepTokens: number;
}

/** The part of an input that goes through in one step. */
interface Piece extends OwnInput {
  readonly input: number;
  /** Whether the input ends with it. */
  readonly ends: boolean;
}

/**
 * Runs inputs in pieces of `stepTokens` a row, as many rows at once as have no more tokens together. Returns per input
 * `last` [vocabulary], `all` [ids, vocabulary], `none` [0]. When it throws, the states of the sequences may be half-written.
 */
export async function runInputs(
  program: Program,
  inputs: readonly OwnInput[],
  { logits = 'last', signal }: RunOptions,
  { vocabulary, stepTokens }: StepLimits,
): Promise<Float32Array[]> {
  const rowsOf = { last: () => 1, all: (ids: Int32Array) => ids.length, none: () => 0 }[logits];
  const results = inputs.map(({ ids }) => new Float32Array(rowsOf(ids) * vocabulary));
  const longest = Math.max(...inputs.map(({ ids }) => ids.length));
  for (let from = 0; from < longest; from += stepTokens) {
    throwIfAborted(signal, 'model.run');
    for (const pieces of groupsOf(piecesAt(inputs, from, stepTokens), stepTokens)) {
      const output = await runPieces(program, pieces, headFor(program, pieces, logits), signal);
      if (!output) continue;
      const values = toFloat32(output);
      let token = 0;
      for (const [row, { input, ids, ends }] of pieces.entries()) {
        const [start, count, at] = logits === 'all' ? [token, ids.length, from] : [row, ends ? 1 : 0, 0];
        results[input]!.set(values.subarray(start * vocabulary, (start + count) * vocabulary), at * vocabulary);
        token += ids.length;
      }
    }
  }
  return results;
}

/** Pieces in their order, as many as have `most` tokens together; single tokens always together. */
function groupsOf(pieces: readonly Piece[], most: number): Piece[][] {
  const groups: Piece[][] = [];
  let tokens = Number.POSITIVE_INFINITY;
  for (const piece of pieces) {
    const { length } = piece.ids;
    if (tokens + length > most && (length > 1 || groups.length === 0)) {
      groups.push([]);
      tokens = 0;
    }
    groups.at(-1)!.push(piece);
    tokens += length;
  }
  return groups;
}

function piecesAt(inputs: readonly OwnInput[], from: number, stepTokens: number): Piece[] {
  return inputs.flatMap(({ sequence, ids }, input) => {
    if (ids.length <= from) return [];
    return [{ sequence, input, ids: ids.subarray(from, from + stepTokens), ends: from + stepTokens >= ids.length }];
  });
}

async function runPieces(
  program: Program,
  pieces: readonly Piece[],
  head: HeadRun | undefined,
  signal: AbortSignal | undefined,
): Promise<HostTensor | undefined> {
  const plans = pieces.map(({ sequence }) => sequence.plan);
  const output = await forward(program, batchOf(pieces), plans, head, signal);
  advance(pieces);
  return output;
}

/** @throws DslaError E_DISPOSED for a sequence that was closed while the step before was in flight */
export function batchOf(inputs: readonly OwnInput[]): StepBatch {
  const ids = new Int32Array(inputs.reduce((sum, input) => sum + input.ids.length, 0));
  const rows: Row[] = [];
  let at = 0;
  for (const { sequence, ids: own } of inputs) {
    if (!sequence.open) throw closed(sequence);
    ids.set(own, at);
    at += own.length;
    rows.push({ slot: sequence.slot, past: sequence.past, count: own.length });
  }
  return { ids, rows };
}

/** Their tokens are in the states. */
export function advance(inputs: readonly OwnInput[]): void {
  for (const { sequence, ids } of inputs) sequence.past += ids.length;
}

/** The last-token head serves only the rows that end here. */
function headFor({ heads }: Program, pieces: readonly Piece[], logits: 'last' | 'all' | 'none'): HeadRun | undefined {
  if (logits === 'all') return { layer: heads.all };
  const ending = [...pieces.keys()].filter((row) => pieces[row]!.ends);
  if (logits === 'none' || ending.length === 0) return undefined;
  return ending.length === pieces.length ? { layer: heads.last } : { layer: heads.last, rows: ending };
}

/** A device that computes in f16 gives f16 bits. */
export function toFloat32({ dtype, data }: HostTensor): Float32Array {
  return dtype === 'f16' ? fromFloat16(data as Uint16Array) : (data as Float32Array);
}
