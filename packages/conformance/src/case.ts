import type { Device } from '@dsla/spec';
import { expectClose } from './compare.js';
import { load, type Piece, type Player, type PlayOptions, type Run } from './play.js';
import type { Tape } from './tape.js';
import type { Tolerance } from './tolerance.js';

/** What a case gets: the device under test, the definition, and how far they may be apart. */
export interface Bench {
  readonly device: Device;
  readonly reference: Device;
  readonly tolerance: Tolerance;
  /** Another device of the same backend, owned by the case. */
  open(): Promise<Device>;
}

/** One test. Its name is a path: `nodes > linear > 7 to 5`. */
export interface Case {
  readonly name: string;
  readonly run: (bench: Bench) => Promise<void>;
}

export interface Scene {
  readonly tapes: readonly Tape[];
  /** Steps, in order. */
  readonly steps: readonly (readonly Piece[])[];
  readonly runs?: readonly Run[];
  readonly options?: PlayOptions;
  /** Which tolerance holds; `forward` if absent. */
  readonly tolerance?: 'forward' | 'extreme';
}

/** Plays the scene on the device and on the reference: every output of every step and every state at the end must agree. */
export async function matchReference(bench: Bench, scene: Scene): Promise<void> {
  using subject = await load(bench.device, scene.tapes, scene.options);
  using truth = await load(bench.reference, scene.tapes, scene.options);
  const { peak, [scene.tolerance ?? 'forward']: rms, [scene.tolerance ?? 'states']: kept } = bench.tolerance;
  for (const [index, pieces] of scene.steps.entries()) {
    const got = await subject.step(pieces, scene.runs);
    const want = await truth.step(pieces, scene.runs);
    for (const name of Object.keys(want)) expectClose(`step ${index} ${name}`, got[name]!, want[name]!, rms, peak);
  }
  for (const [slot, length] of lengths(scene.steps.flat())) {
    const got = await subject.states(slot, length);
    const want = await truth.states(slot, length);
    for (const name of Object.keys(want)) expectClose(`slot ${slot} ${name}`, got[name]!, want[name]!, kept, peak);
  }
}

/** Throws unless two sets of named values of one device are equal up to rounding. */
export function expectSame(
  bench: Bench,
  what: string,
  got: Readonly<Record<string, Float32Array>>,
  want: Readonly<Record<string, Float32Array>>,
): void {
  const { same, peak } = bench.tolerance;
  for (const name of Object.keys(want)) expectClose(`${what} ${name}`, got[name]!, want[name]!, same, peak);
}

/** Runs one sequence in pieces of the given sizes and returns one output end to end. */
export async function inPieces(
  player: Player,
  output: string,
  row: { readonly slot: number; readonly text?: number },
  counts: readonly number[],
  runs?: readonly Run[],
): Promise<Float32Array> {
  const found: number[] = [];
  let past = 0;
  for (const count of counts) {
    found.push(...(await player.step([{ ...row, past, count }], runs))[output]!);
    past += count;
  }
  return Float32Array.from(found);
}

/** Tokens in every slot after the last step that used it. */
function lengths(pieces: readonly Piece[]): Map<number, number> {
  return new Map(pieces.map(({ slot, past, count }) => [slot, past + count]));
}
