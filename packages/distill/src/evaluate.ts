import type { Plan } from '@dsla/models';
import { type Estimate, estimate } from '@dsla/policy';
import { type DeviceBuffer, type Named, type TrainableLayer, throwIfAborted } from '@dsla/spec';
import type { Student } from './student.js';
import { modelTape } from './tapes.js';

/** A hybrid against its teacher on the same windows; in nats a token. */
export interface Evaluation {
  /** KL(teacher || hybrid) of the next token. */
  readonly kl: Estimate;
  /** Cross-entropy of the text under the hybrid, and how much of it the conversion costs, window by window. */
  readonly crossEntropy: Estimate;
  readonly excess: Estimate;
  readonly tokens: number;
}

/** A prefix of the order, tuned and judged on the held-out windows. */
export interface LevelResult extends Evaluation {
  readonly level: number;
  readonly layer: number;
  /** KL of the same prefix with this layer still untuned; absent where layers are tuned together. */
  readonly untuned?: Estimate | undefined;
  /** Of the stages since the last level. */
  readonly misfits: readonly Misfit[];
}

/** What a stage made of its held-out misfit. */
export interface Misfit {
  readonly task: string;
  readonly before: number;
  readonly after: number;
  /** Taken: fewer than planned after an early stop. */
  readonly steps: number;
}

/** Judges a plan on windows [windows * tokens]. */
export async function evaluate(
  student: Student,
  plan: Plan,
  ids: Int32Array,
  tokens: number,
  signal?: AbortSignal,
): Promise<Evaluation> {
  using hybrid = await student.device.compileTrainable(
    modelTape(student.description, plan),
    student.weights,
    [],
    signal,
  );
  const seen: Divergence[] = [];
  for (const window of windowsOf(ids, tokens)) {
    throwIfAborted(signal, 'evaluate');
    seen.push(await diverge(student, hybrid, window));
    await new Promise(setImmediate); // lets a Ctrl-C in
  }
  return {
    kl: estimate(seen.map(({ kl }) => kl)),
    crossEntropy: estimate(seen.map(({ own }) => own)),
    excess: estimate(seen.map(({ own, teacher }) => own - teacher)),
    tokens: ids.length,
  };
}

/** Stretches of so many tokens; the last one may be shorter. */
export function windowsOf(ids: Int32Array, tokens: number): Int32Array[] {
  const count = Math.ceil(ids.length / tokens);
  return Array.from({ length: count }, (_, index) => ids.subarray(index * tokens, (index + 1) * tokens));
}

/** Values of a named output of one forward pass over a window, [tokens, width]. */
export async function outputOf(
  student: Student,
  layer: TrainableLayer,
  batch: Parameters<TrainableLayer['forward']>[0],
  name: string,
): Promise<Float32Array> {
  const outputs = layer.forward(batch);
  try {
    return (await student.device.download(outputs[name]!)).data as Float32Array;
  } finally {
    disposeAll(outputs);
  }
}

export function disposeAll(buffers: Named<DeviceBuffer>): void {
  for (const buffer of Object.values(buffers)) buffer[Symbol.dispose]();
}

interface Divergence {
  readonly kl: number;
  /** Cross-entropies. */
  readonly own: number;
  readonly teacher: number;
}

/** One window; means over its tokens. */
async function diverge(student: Student, hybrid: TrainableLayer, ids: Int32Array): Promise<Divergence> {
  const batch = { rows: 1, tokens: ids.length, ids };
  const wanted = await outputOf(student, student.teacher, batch, 'logits');
  const got = await outputOf(student, hybrid, batch, 'logits');
  const width = wanted.length / ids.length;
  let [kl, own, teacher] = [0, 0, 0];
  for (let token = 0; token < ids.length; token++) {
    const [p, q] = [wanted, got].map((logits) => logits.subarray(token * width, (token + 1) * width)) as [
      Float32Array,
      Float32Array,
    ];
    const { divergence, logSums } = compare(p, q);
    kl += divergence;
    if (token + 1 === ids.length) break;
    const next = ids[token + 1]!;
    own += logSums[1] - q[next]!;
    teacher += logSums[0] - p[next]!;
  }
  return { kl: kl / ids.length, own: own / (ids.length - 1), teacher: teacher / (ids.length - 1) };
}

/** KL(softmax(p) || softmax(q)), and log sum exp of both. */
function compare(
  p: Float32Array,
  q: Float32Array,
): { readonly divergence: number; readonly logSums: [number, number] } {
  const [mostP, mostQ] = [p, q].map((logits) => most(logits)) as [number, number];
  let [sumP, sumQ, apart] = [0, 0, 0];
  for (let i = 0; i < p.length; i++) {
    const share = Math.exp(p[i]! - mostP);
    sumP += share;
    sumQ += Math.exp(q[i]! - mostQ);
    apart += share * (p[i]! - q[i]!);
  }
  const logSums: [number, number] = [mostP + Math.log(sumP), mostQ + Math.log(sumQ)];
  return { divergence: apart / sumP - logSums[0] + logSums[1], logSums };
}

function most(logits: Float32Array): number {
  let most = Number.NEGATIVE_INFINITY;
  for (const logit of logits) if (logit > most) most = logit;
  return most;
}
