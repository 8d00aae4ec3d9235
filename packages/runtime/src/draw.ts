import { type DeviceBuffer, type Draw, DslaError, type Step } from '@dsla/spec';
import { record } from './forward.js';
import type { Program } from './program.js';
import { advance, batchOf, type OwnInput, runInputs, type StepLimits, toFloat32 } from './run.js';
import { drawToken, notNumbers } from './sample.js';
import type { OwnSequence } from './slots.js';

/** The next tokens of some sequences, which need not be known yet. Disposing it frees its step; ids that were asked for stay. */
export interface Drawn extends Disposable {
  /** One an input. Rejects where the step failed; its sequences are cleared then. */
  readonly ids: Promise<Int32Array>;
  /** Whether the device drew them: the next step may then begin before they are known. */
  readonly onDevice: boolean;
}

/** Tokens drawn, as their model sees them. */
export class DrawnTokens implements Drawn {
  readonly ids: Promise<Int32Array>;
  readonly onDevice: boolean;
  readonly sequences: readonly OwnSequence[];
  readonly #past: readonly number[];
  readonly #step: Step;

  constructor(step: Step, sequences: readonly OwnSequence[], ids: Promise<Int32Array>, onDevice: boolean) {
    this.ids = ids;
    this.onDevice = onDevice;
    this.sequences = sequences;
    this.#past = sequences.map(({ past }) => past);
    this.#step = step;
    ids.catch(() => {}); // whoever does not ask need not know
  }

  /** What the next step gets. @throws DslaError E_INPUT when a sequence has gone on otherwise */
  async next(): Promise<StepInputs> {
    const moved = this.sequences.find(({ past }, row) => past !== this.#past[row]);
    if (moved) {
      throw new DslaError('E_INPUT', {
        where: 'model.draw',
        rule: 'nothing else may have been run for the sequences since',
        got: `${moved.past} tokens in slot ${moved.slot}`,
        cure: 'Await the ids, and pass them with their sequences.',
      });
    }
    const known = this.onDevice ? undefined : await this.ids;
    const inputs = this.sequences.map((sequence, row) => ({ sequence, ids: Int32Array.of(known?.[row] ?? 0) }));
    return known ? { inputs } : { inputs, drawn: this.#step.value('ids') };
  }

  [Symbol.dispose](): void {
    this.#step[Symbol.dispose]();
  }
}

/** Inputs, and their ids where those are on the device: then the inputs' own are not read. */
export interface StepInputs {
  readonly inputs: readonly OwnInput[];
  readonly drawn?: DeviceBuffer;
}

interface DrawOptions {
  readonly drawn: DeviceBuffer | undefined;
  /** One an input. */
  readonly draws: readonly Draw[];
  readonly limits: StepLimits;
  readonly signal: AbortSignal | undefined;
  /** Makes the error of a step that did not finish. */
  readonly failed: (cause: unknown) => never;
}

/**
 * Runs inputs as one batch and draws a token for each. Where the device draws it hands the last step over and returns; else it
 * waits, and draws here.
 */
export async function drawInputs(
  program: Program,
  inputs: readonly OwnInput[],
  { drawn, draws, limits, signal, failed }: DrawOptions,
): Promise<DrawnTokens> {
  let step: Step | undefined;
  try {
    const last = drawn ? inputs : await runLeads(program, inputs, limits, signal);
    const sequences = last.map(({ sequence }) => sequence);
    const plans = sequences.map(({ plan }) => plan);
    step = record(program, batchOf(last), plans, { layer: program.heads.last }, drawn && { ids: drawn });
    const onDevice = step.draw !== undefined;
    const ids = onDevice ? drawThere(program, step, draws) : Promise.resolve(await drawHere(program, step, draws));
    advance(last);
    return new DrawnTokens(step, sequences, ids.catch(failed).then(refuseNone), onDevice);
  } catch (cause) {
    step?.[Symbol.dispose]();
    return failed(cause);
  }
}

/** All but the last piece of every input, or but the last token where those are too many for one step. */
async function runLeads(
  program: Program,
  inputs: readonly OwnInput[],
  limits: StepLimits,
  signal: AbortSignal | undefined,
): Promise<readonly OwnInput[]> {
  const tail = ({ length }: Int32Array): number => 1 + ((length - 1) % limits.stepTokens);
  const together = inputs.reduce((sum, { ids }) => sum + tail(ids), 0) <= limits.stepTokens;
  const lead = (ids: Int32Array): number => ids.length - (together ? tail(ids) : 1);
  const leads = inputs.flatMap(({ sequence, ids }) =>
    lead(ids) > 0 ? [{ sequence, ids: ids.subarray(0, lead(ids)) }] : [],
  );
  if (leads.length > 0) await runInputs(program, leads, { logits: 'none', signal }, limits);
  return inputs.map(({ sequence, ids }) => ({ sequence, ids: ids.subarray(lead(ids)) }));
}

/** Asks for the ids at once: later, their copy would stand behind the next step. */
async function drawThere({ device }: Program, step: Step, draws: readonly Draw[]): Promise<Int32Array> {
  step.draw!(draws);
  const submitted = step.submit();
  const [{ data }] = await Promise.all([device.download(step.value('ids')), submitted]);
  return data as Int32Array;
}

async function drawHere({ device }: Program, step: Step, draws: readonly Draw[]): Promise<Int32Array> {
  await step.submit();
  const logits = toFloat32(await device.download(step.value('logits')));
  const vocabulary = logits.length / draws.length;
  return Int32Array.from(draws, (draw, row) =>
    drawToken(logits.subarray(row * vocabulary, (row + 1) * vocabulary), draw),
  );
}

/** @throws DslaError E_INTERNAL where logits were not numbers */
function refuseNone(ids: Int32Array): Int32Array {
  if (ids.every((id) => id >= 0)) return ids;
  throw notNumbers('model.draw', `row ${ids.findIndex((id) => id < 0)}`);
}
