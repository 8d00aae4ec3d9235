import type { ModelDescription, Plan } from '@dsla/models';
import {
  checkDraws,
  type Device,
  type Draw,
  DslaError,
  isDslaError,
  type Named,
  type StateStore,
  throwIfAborted,
  type WeightSource,
} from '@dsla/spec';
import { type Drawn, DrawnTokens, drawInputs, type StepInputs } from './draw.js';
import { type CompileOptions, compile, type Program } from './program.js';
import { type OwnInput, type RunOptions, runInputs, type StepLimits } from './run.js';
import { type OwnSequence, type Sequence, Slots } from './slots.js';
import { changePlan } from './swap.js';

/** A model on a device, in token ids. Steps are run one after the other, in the order of the calls. */
export interface Model extends AsyncDisposable {
  readonly description: ModelDescription;
  readonly device: Device;
  /** Sequences that can be open at once. */
  readonly slots: number;
  /** Tokens that a sequence can hold. */
  readonly context: number;
  /** By name; their `bytes` are what the caches take now. */
  readonly states: Named<StateStore>;
  /**
   * Takes a free slot. `plan` defaults to the one the model was loaded for, else to its own mixers.
   * @throws DslaError E_INPUT: no free slot, or a plan that does not fit
   */
  open(plan?: Plan): Sequence;
  /** A second sequence with the same tokens and plan, in a slot of its own. @throws DslaError E_INPUT: no free slot */
  fork(sequence: Sequence): Promise<Sequence>;
  /**
   * Runs tokens of several sequences as one batch, long ones in pieces. Returns one array an input: `last` [vocabulary],
   * `all` [ids, vocabulary], `none` [0]. When a step fails or is aborted, the sequences are cleared (`past` is 0), since
   * their states may be half-written.
   * @throws DslaError E_INPUT before anything runs; E_ABORTED; what the device throws
   */
  run(inputs: readonly RunInput[], options?: RunOptions): Promise<Float32Array[]>;
  /**
   * Runs inputs as `run` does, and draws the next token of each; or goes on with the tokens drawn before, whether or not they
   * are known yet. Where the device draws, this returns once the step is handed over, so that it has the next one before the
   * host has read the last. Whoever gets the tokens disposes them. When a step fails, its sequences are cleared.
   * @throws DslaError as `run`; E_INPUT for draws out of range, and for tokens of sequences that have gone on otherwise
   */
  draw(from: readonly RunInput[] | Drawn, draws: readonly Draw[], signal?: AbortSignal): Promise<Drawn>;
  /**
   * Changes the plan of a sequence that has tokens in its states, and frees the caches it no longer needs. No other sequence
   * notices. When it throws, the sequence is as it was.
   * @throws DslaError E_UNSUPPORTED for a layer that cannot go that way, E_INPUT, E_ABORTED
   */
  swap(sequence: Sequence, plan: Plan, signal?: AbortSignal): Promise<void>;
}

export interface RunInput {
  readonly sequence: Sequence;
  readonly ids: ArrayLike<number>;
}

export interface ModelOptions extends Pick<CompileOptions, 'device' | 'plan' | 'signal' | 'onProgress'> {
  /** Sequences that can be open at once; 1 unless said. */
  readonly slots?: number | undefined;
  /** Tokens that a sequence can hold; what the model was trained for unless said. */
  readonly context?: number | undefined;
  /**
   * Most tokens of one step, single ones of many sequences aside; what the device does best unless said, 512 where it does not
   * tell. Longer inputs go through in pieces, and those that are too many one after the other.
   */
  readonly stepTokens?: number | undefined;
}

/**
 * Compiles a model for a device. The device stays the caller's; disposing the model frees all it made on it.
 * @throws DslaError E_INPUT, E_UNSUPPORTED, E_ABORTED, and what the device and the weights throw
 */
export async function createModel(
  description: ModelDescription,
  weights: WeightSource,
  options: ModelOptions,
): Promise<Model> {
  const { slots = 1, context = description.context, plan } = options;
  const { stepTokens = options.device.capabilities.stepTokens ?? 512 } = options;
  for (const [name, value] of Object.entries({ slots, context, stepTokens })) {
    if (!Number.isInteger(value) || value < 1) fail('model options', `${name} must be an integer of at least 1`, value);
  }
  if (plan) checkPlan(description, plan);
  const program = await compile(description, weights, { ...options, slots, context });
  return new CompiledModel(description, program, { slots, context, stepTokens, plan });
}

interface Settings {
  readonly slots: number;
  readonly context: number;
  readonly stepTokens: number;
  /** The only plan, if it was compiled for one. */
  readonly plan: Plan | undefined;
}

class CompiledModel implements Model {
  readonly description: ModelDescription;
  readonly device: Device;
  readonly slots: number;
  readonly context: number;
  readonly states: Named<StateStore>;
  readonly #program: Program;
  readonly #settings: Settings;
  readonly #slots: Slots;
  /** What was asked for last: tasks run in turn. */
  #last: Promise<unknown> = Promise.resolve();
  #disposed = false;

  constructor(description: ModelDescription, program: Program, settings: Settings) {
    this.description = description;
    this.device = program.device;
    this.slots = settings.slots;
    this.context = settings.context;
    this.states = program.states;
    this.#program = program;
    this.#settings = settings;
    this.#slots = new Slots(program.states, settings.slots);
  }

  open(plan: Plan = this.#settings.plan ?? Array(this.description.convertible).fill('default')): Sequence {
    this.#alive();
    this.#checkPlan(plan);
    return this.#slots.take(plan);
  }

  fork(sequence: Sequence): Promise<Sequence> {
    return this.#inTurn(async () => this.#slots.fork(this.#slots.own(sequence)));
  }

  run(inputs: readonly RunInput[], options: RunOptions = {}): Promise<Float32Array[]> {
    return this.#inTurn(async () => {
      const own = this.#check(inputs);
      throwIfAborted(options.signal, 'model.run');
      try {
        return await runInputs(this.#program, own, options, this.#limits);
      } catch (cause) {
        throw unfinished('model.run', this.#clear(own.map(({ sequence }) => sequence)), cause);
      }
    });
  }

  draw(from: readonly RunInput[] | Drawn, draws: readonly Draw[], signal?: AbortSignal): Promise<Drawn> {
    return this.#inTurn(async () => {
      const { inputs, drawn } = from instanceof DrawnTokens ? await this.#afterDrawn(from) : this.#fromInputs(from);
      checkDraws(draws, inputs.length);
      throwIfAborted(signal, 'model.draw');
      const failed = (cause: unknown): never => {
        throw unfinished('model.draw', this.#clear(inputs.map(({ sequence }) => sequence)), cause);
      };
      return await drawInputs(this.#program, inputs, { drawn, draws, limits: this.#limits, signal, failed });
    });
  }

  swap(sequence: Sequence, plan: Plan, signal?: AbortSignal): Promise<void> {
    return this.#inTurn(async () => {
      const own = this.#slots.own(sequence);
      this.#checkPlan(plan);
      throwIfAborted(signal, 'model.swap');
      await changePlan(this.#program, own, plan, signal);
      own.plan = [...plan];
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#slots.close();
    await this.#last;
    await this.#program[Symbol.asyncDispose]();
  }

  get #limits(): StepLimits {
    return { vocabulary: this.description.vocabulary, stepTokens: this.#settings.stepTokens };
  }

  #fromInputs(from: readonly RunInput[] | Drawn): StepInputs {
    if (Array.isArray(from)) return { inputs: this.#check(from) };
    fail('model.draw', 'it must get inputs, or what a draw of this model returned', typeof from);
  }

  /** The tokens drawn before as inputs. */
  async #afterDrawn(from: DrawnTokens): Promise<StepInputs> {
    for (const sequence of from.sequences) {
      this.#slots.own(sequence);
      if (sequence.past >= this.context) {
        fail('model.draw', `the tokens must fit the context of ${this.context}`, `${sequence.past} + 1`);
      }
    }
    return await from.next();
  }

  #check(inputs: readonly RunInput[]): OwnInput[] {
    if (inputs.length === 0) fail('model.run', 'it must get at least one sequence', 0);
    if (new Set(inputs.map(({ sequence }) => sequence)).size < inputs.length) {
      fail('model.run', 'a sequence may appear once', `slots ${inputs.map(({ sequence }) => sequence.slot)}`);
    }
    return inputs.map(({ sequence, ids }, index) => {
      const own = this.#slots.own(sequence);
      this.#checkIds(`model.run input ${index}`, own.past, ids);
      return { sequence: own, ids: Int32Array.from(ids) };
    });
  }

  #checkIds(where: string, past: number, ids: ArrayLike<number>): void {
    const { vocabulary } = this.description;
    if (ids.length === 0) fail(where, 'it must have at least one token id', 0);
    const wrong = Array.from(ids).find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
    if (wrong !== undefined) fail(where, `token ids must be integers in 0..${vocabulary - 1}`, wrong);
    if (past + ids.length <= this.context) return;
    const total = past === 0 ? ids.length : `${past} + ${ids.length}`;
    const cure = 'Shorten the text, or load the model with a larger context.';
    fail(where, `the tokens must fit the context of ${this.context}`, total, cure);
  }

  #checkPlan(plan: Plan): void {
    checkPlan(this.description, plan);
    const { plan: only } = this.#settings;
    if (only?.some((mixer, layer) => mixer !== plan[layer])) {
      fail('plan', 'it must be the one the model was compiled for', plan, 'Load it without a plan to choose later.');
    }
  }

  #clear(sequences: readonly OwnSequence[]): number[] {
    try {
      return this.#slots.clear(sequences);
    } catch {
      return sequences.map(({ slot }) => slot); // a lost device cannot clear: the cause of the failure says so
    }
  }

  #alive(): void {
    if (this.#disposed) throw new DslaError('E_DISPOSED', { where: 'model', rule: 'it must not have been disposed' });
  }

  #inTurn<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#last.then(() => {
      this.#alive();
      return task();
    });
    this.#last = result.catch(() => {});
    return result;
  }
}

/** @throws DslaError E_INPUT */
function checkPlan({ architecture, convertible, mixers }: ModelDescription, plan: Plan): void {
  if (plan.length !== convertible) {
    fail('plan', `it must name a mixer for each of the ${convertible} convertible layers of ${architecture}`, plan);
  }
  const known = ['default', ...mixers];
  const unknown = plan.find((mixer) => !known.includes(mixer));
  if (unknown === undefined) return;
  fail('plan', `its mixers must be among ${known.join(', ')}`, unknown, 'Give the mixers when the model is loaded.');
}

function unfinished(where: string, slots: readonly number[], cause: unknown): DslaError {
  return new DslaError(isDslaError(cause) ? cause.code : 'E_DEVICE', {
    where,
    rule: `a step did not finish, so the sequences of slots ${slots.join(', ')} were cleared (${cause instanceof Error ? cause.message : cause})`,
    cure: 'Run their tokens again from the first.',
    details: { slots },
    cause,
  });
}

function fail(where: string, rule: string, got: unknown, cure?: string): never {
  throw new DslaError('E_INPUT', { where, rule, got, ...(cure === undefined ? {} : { cure }) });
}
