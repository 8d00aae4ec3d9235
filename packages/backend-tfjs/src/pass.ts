import { isDslaError, type LayerGraph, type Node, operandsOf, type Value, type Weight, weightsOf } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import { backward } from './backward.js';
import type { Frame } from './frame.js';
import { evaluate } from './lower.js';
import { failed } from './run.js';

// Reverse mode over a tape: the forward pass keeps the values that some gradient reads, the backward pass visits the nodes
// from last to first and frees as it goes. What a node computes inside is not kept but computed again.

/** Tensors of one call, freed together at its end or one by one before. */
export class Live {
  readonly #tensors = new Set<Tensor>();

  hold(tensor: Tensor): Tensor {
    this.#tensors.add(tf.keep(tensor));
    return tensor;
  }

  free(tensor: Tensor | undefined): void {
    if (tensor && this.#tensors.delete(tensor)) tensor.dispose();
  }

  freeAll(): void {
    for (const tensor of this.#tensors) tensor.dispose();
    this.#tensors.clear();
  }
}

/** What the gradients of a tape need, by value. */
export interface Plan {
  /** Does the value depend on a trainable weight? */
  readonly needed: readonly boolean[];
  /** Does the gradient of some node read it, or is it an output? */
  readonly kept: readonly boolean[];
  /** The last node that reads it. */
  readonly lastUse: readonly number[];
  readonly trainable: readonly Weight[];
}

export function planOf({ nodes }: LayerGraph, trainable: readonly Weight[]): Plan {
  const needed: boolean[] = [];
  const kept = nodes.map(() => false);
  const lastUse = nodes.map((_, index) => index);
  nodes.forEach((node, index) => {
    const operands = operandsOf(node);
    needed.push(operands.some((value) => needed[value]) || weightsIn(node, trainable).length > 0);
    for (const value of operands) {
      lastUse[value] = index;
      if (needed[index] || node.op === 'output') kept[value] = true;
    }
  });
  return { needed, kept, lastUse, trainable };
}

/** The values of a tape that its plan keeps. `input` gives a tensor that stays with the caller. */
export function forwardPass(
  tape: LayerGraph,
  plan: Pick<Plan, 'kept' | 'lastUse'>,
  frame: Frame,
  input: (name: string) => Tensor,
  live: Live,
): (Tensor | undefined)[] {
  const values: (Tensor | undefined)[] = [];
  tape.nodes.forEach((node, index) => {
    const operands = operandsOf(node);
    const xs = operands.map((value) => values[value]!);
    if (node.op === 'input') values[index] = input(node.name);
    else if (node.op !== 'output') {
      values[index] = at(tape, index, () => live.hold(tf.tidy(() => evaluate(node, xs, frame))));
    }
    for (const value of operands) {
      if (plan.kept[value] || plan.lastUse[value] !== index) continue;
      live.free(values[value]);
      values[value] = undefined;
    }
  });
  return values;
}

/** Gradients of the loss by value, added up as they arrive. */
export class Slopes {
  readonly #live: Live;
  readonly #by = new Map<Value | Weight, Tensor>();

  constructor(live: Live) {
    this.#live = live;
  }

  /** Takes the gradient over. */
  add(key: Value | Weight, gradient: Tensor): void {
    const old = this.#by.get(key);
    const sum = old ? tf.add(old, gradient) : gradient;
    if (old) {
      gradient.dispose();
      this.#live.free(old);
    }
    this.#by.set(key, this.#live.hold(sum));
  }

  get(key: Value | Weight): Tensor | undefined {
    return this.#by.get(key);
  }

  free(key: Value): void {
    this.#live.free(this.#by.get(key));
    this.#by.delete(key);
  }
}

/** Adds the gradients by weight to `slopes`, which begins with those by the outputs' values. */
export function backwardPass(
  tape: LayerGraph,
  { needed, trainable }: Plan,
  frame: Frame,
  values: (Tensor | undefined)[],
  slopes: Slopes,
  live: Live,
): void {
  for (let index = tape.nodes.length - 1; index >= 0; index--) {
    const node = tape.nodes[index]!;
    const slope = slopes.get(index);
    if (slope && needed[index] && node.op !== 'output') {
      const operands = operandsOf(node);
      const xs = operands.map((value) => values[value]!);
      const wanted = { operands: operands.map((value) => needed[value]!), weights: weightsIn(node, trainable) };
      const found = at(tape, index, () => tf.tidy(() => backward(node, xs, slope, frame, wanted)));
      found.operands.forEach((gradient, operand) => {
        if (gradient && wanted.operands[operand]) slopes.add(operands[operand]!, gradient);
        else gradient?.dispose();
      });
      for (const [name, gradient] of Object.entries(found.weights)) {
        if (wanted.weights.includes(name)) slopes.add(name, gradient);
        else gradient.dispose();
      }
    }
    slopes.free(index);
    live.free(values[index]);
    values[index] = undefined;
  }
}

function weightsIn(node: Node, trainable: readonly Weight[]): Weight[] {
  return weightsOf({ name: '', states: [], nodes: [node] }).filter((name) => trainable.includes(name));
}

function at<T>(tape: LayerGraph, index: number, compute: () => T): T {
  try {
    return compute();
  } catch (cause) {
    const where = `${tape.name} node ${index} (${tape.nodes[index]!.op})`;
    throw isDslaError(cause) ? cause : failed(where, cause as Error);
  }
}
