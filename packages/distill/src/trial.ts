import type { Plan } from '@dsla/models';
import { DslaError, type Gradients, type Loss, Scope, type TrainableLayer, type Weight } from '@dsla/spec';
import { disposeAll, outputOf, windowsOf } from './evaluate.js';
import { gateCosine, separation } from './gates.js';
import type { Recipe } from './recipe.js';
import type { Student } from './student.js';
import { attended, gateLogits, inputsOf, type MatchTapes, matchTapes, modelTape, weightsOfMixer } from './tapes.js';

/** Something to be tuned: compiled tapes, a loss, and a measure of success. */
export interface Trial extends AsyncDisposable {
  readonly layer: TrainableLayer;
  /** Loss and gradients on windows [rows * tokens]. */
  gradients(ids: Int32Array): Promise<Gradients>;
  /** What the held-out windows say; lower is better. */
  misfit(ids: Int32Array): Promise<number>;
}

/**
 * The mixer of one layer against softmax attention on the teacher's inputs. Misfit: squared error of y over the square of the
 * teacher's, 0 perfect, 1 as good as silence.
 */
export async function matchTrial(
  student: Student,
  layer: number,
  recipe: Recipe,
  heldOut: Int32Array,
  signal?: AbortSignal,
): Promise<Trial> {
  const { device, weights, description, mixer } = student;
  const { tokens } = recipe;
  const tapes = matchTapes(description, layer, mixer.name);
  await using scope = new Scope();
  const teacher = scope.use(await device.compileTrainable(tapes.teacher, weights, [], signal));
  const names = trainable(student, [layer], recipe);
  const own = scope.use(await device.compileTrainable(tapes.student, weights, names, signal));
  const wanted = inputsOf(tapes.student);

  const misfits = async (ids: Int32Array): Promise<{ error: number; power: number }> => {
    const outputs = teacher.forward({ rows: ids.length / tokens, tokens, ids });
    try {
      const inputs = Object.fromEntries(wanted.map((name) => [name, outputs[name]!]));
      const target = (await device.download(outputs[attended]!)).data;
      const got = await outputOf(student, own, { rows: ids.length / tokens, tokens, inputs }, attended);
      let [error, power] = [0, 0];
      for (let at = 0; at < target.length; at++) {
        error += (got[at]! - target[at]!) ** 2;
        power += target[at]! ** 2;
      }
      return { error: error / target.length, power: power / target.length };
    } finally {
      disposeAll(outputs);
    }
  };
  const first = await misfits(heldOut.subarray(0, tokens));
  const extra = gateTerm(tapes, recipe);
  const held = scope.move();
  return {
    layer: own,
    async gradients(ids) {
      const rows = ids.length / tokens;
      const outputs = teacher.forward({ rows, tokens, ids });
      try {
        const inputs = Object.fromEntries(wanted.map((name) => [name, outputs[name]!]));
        const target = outputs[attended]!;
        const main: Loss =
          recipe.match.loss === 'mse'
            ? { kind: 'mse', output: attended, target, weight: 1 / first.power }
            : { kind: 'kl', output: attended, teacher: target };
        return await own.gradients({ rows, tokens, inputs }, [main, ...extra]);
      } finally {
        disposeAll(outputs);
      }
    },
    async misfit(ids) {
      let [error, power] = [0, 0];
      for (const group of windowsOf(ids, tokens * recipe.match.rows)) {
        const one = await misfits(group);
        error += one.error * group.length;
        power += one.power * group.length;
      }
      return error / power;
    },
    [Symbol.asyncDispose]: () => held[Symbol.asyncDispose](),
  };
}

/** Layers of a hybrid by the KL of its logits from the teacher's; the misfit is that KL. */
export async function logitsTrial(
  student: Student,
  layers: readonly number[],
  plan: Plan,
  recipe: Recipe,
  signal?: AbortSignal,
): Promise<Trial> {
  const { device, weights, description, teacher } = student;
  const { tokens } = recipe;
  const names = trainable(student, layers, recipe);
  const tape = modelTape(description, plan);
  await using scope = new Scope();
  const layer = scope.use(await device.compileTrainable(tape, weights, names, signal));
  const judge = scope.use(await device.compileTrainable(tape, weights, [], signal)); // its losses need no backward pass
  const kl = async (of: TrainableLayer, ids: Int32Array): Promise<Gradients> => {
    const batch = { rows: ids.length / tokens, tokens, ids };
    const outputs = teacher.forward(batch);
    try {
      return await of.gradients(batch, [{ kind: 'kl', output: 'logits', teacher: outputs.logits! }]);
    } finally {
      disposeAll(outputs);
    }
  };
  const held = scope.move();
  return {
    layer,
    gradients: (ids) => kl(layer, ids),
    async misfit(ids) {
      let sum = 0;
      for (const group of windowsOf(ids, tokens * recipe.logits.rows)) {
        sum += (await kl(judge, group)).loss * group.length;
      }
      return sum / ids.length;
    },
    [Symbol.asyncDispose]: () => held[Symbol.asyncDispose](),
  };
}

/** @throws DslaError E_INPUT when nothing is left to train */
function trainable({ description, mixer }: Student, layers: readonly number[], { train }: Recipe): Weight[] {
  const all = layers.flatMap((layer) => weightsOfMixer(description, layer, mixer.name));
  const part = (name: string) => name.split(`.${mixer.name}.`)[1]!;
  const wanted = all.filter((name) => !train || train.some((prefix) => part(name).startsWith(prefix)));
  if (wanted.length > 0) return wanted;
  throw new DslaError('E_INPUT', {
    where: `layer ${layers.join(', ')}`,
    rule: `recipe.train must name some of ${[...new Set(all.map(part))].join(', ') || 'its weights; it has none'}`,
    got: train ?? 'all',
  });
}

function gateTerm({ dual }: MatchTapes, { match }: Recipe): Loss[] {
  if (!dual || match.separation === 0 || dual.form.states < 2) return [];
  const of = match.octaves === undefined ? gateCosine(dual.form) : separation(dual.form, match.octaves);
  return [{ kind: 'host', outputs: [gateLogits], of, weight: match.separation }];
}
