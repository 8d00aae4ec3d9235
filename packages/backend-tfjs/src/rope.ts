import type { Rope } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { Holder } from './memory.js';

interface Table {
  readonly positions: number;
  /** [positions, rotaryDim / 2] */
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** Cosines and sines of a device, computed once in float64 for as many positions as were ever asked for. */
export class RopeTables {
  readonly #holder: Holder;
  readonly #keys = new WeakMap<Rope, string>();
  readonly #tables = new Map<string, Table>();

  constructor(holder: Holder) {
    this.#holder = holder;
  }

  /** Rotates x [..., T, hd], whose tokens stand at from, from + 1, ...; `undo` turns back. */
  rotate(x: Tensor, rope: Rope | undefined, from: number, undo = false): Tensor {
    if (!rope) return x;
    const hd = x.shape.at(-1)!;
    const tokens = x.shape.at(-2)!;
    const half = rope.rotaryDim / 2;
    const table = this.#table(rope, from + tokens);
    const cos = tf.slice(table.cos, [from, 0], [tokens, half]);
    const ahead = tf.slice(table.sin, [from, 0], [tokens, half]);
    const sin = undo ? tf.neg(ahead) : ahead;
    const lead = x.shape.slice(0, -1).map(() => 0);
    const features = (begin: number, size: number) => tf.slice(x, [...lead, begin], [...lead.map(() => -1), size]);
    const [a, b] = [features(0, half), features(half, half)];
    const turned = [tf.sub(tf.mul(a, cos), tf.mul(b, sin)), tf.add(tf.mul(b, cos), tf.mul(a, sin))];
    const rest = rope.rotaryDim < hd ? [features(rope.rotaryDim, hd - rope.rotaryDim)] : [];
    return tf.concat([...turned, ...rest], -1);
  }

  #table(rope: Rope, positions: number): Table {
    let key = this.#keys.get(rope);
    if (key === undefined) {
      key = rope.frequencies.join();
      this.#keys.set(rope, key);
    }
    const old = this.#tables.get(key);
    if (old && old.positions >= positions) return old;
    const size = Math.max(256, 2 ** Math.ceil(Math.log2(positions)));
    const angles = Float64Array.from(
      { length: size * rope.frequencies.length },
      (_, index) => Math.floor(index / rope.frequencies.length) * rope.frequencies[index % rope.frequencies.length]!,
    );
    const make = (of: (angle: number) => number): Tensor =>
      this.#holder.keep(tf.tensor2d(Float32Array.from(angles, of), [size, rope.frequencies.length]));
    const table = { positions: size, cos: make(Math.cos), sin: make(Math.sin) };
    if (old) for (const tensor of [old.cos, old.sin]) this.#holder.release(tensor);
    this.#tables.set(key, table);
    return table;
  }
}
