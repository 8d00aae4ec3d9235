import { convState, kvState, type LayerGraph, scanState, type Value } from '@dsla/spec';
import type { ZambaConfig } from './config-zamba.js';
import type { ModelDescription } from './model.js';
import { names } from './names.js';
import { type TapeWriter, tape } from './tape.js';
import { type MambaWeights, type SharedWeights, type ZambaWeights, zambaWeights } from './zamba-names.js';

/**
 * Zamba-7B-v1 (arXiv 2405.16712): h += Mamba(norm(h + t)) in every layer, where t is 0 but in hybrid layers, which run one
 * shared transformer block on concat(h, embedding). Its layers cannot be exchanged.
 */
export function zamba(config: ZambaConfig): ModelDescription {
  const table = names();
  const weights = zambaWeights(config, table);
  const { hidden, normEps } = config;
  const embed = tape('embed', (t) => {
    const x = t.node({ op: 'embed', table: weights.embed });
    t.output('x', x);
    t.output('embedded', x);
  });
  const head = (name: string, lastOnly: boolean): LayerGraph =>
    tape(name, (t) => {
      const x = t.input('x', hidden);
      const wanted = lastOnly ? t.node({ op: 'lastToken', x }) : x;
      t.output('logits', t.linear(t.norm(wanted, weights.norm, normEps), weights.head));
    });
  return {
    architecture: 'zamba',
    vocabulary: config.vocabulary,
    context: config.context,
    convertible: 0,
    mixers: [],
    segments: [
      { name: 'embed', versions: { default: embed } },
      ...weights.layers.map((_, layer) => ({
        name: `layers.${layer}`,
        versions: { default: layerTape(config, weights, layer) },
      })),
    ],
    head: head('head', true),
    headAll: head('headAll', false),
    folds: {},
    weights: table.weights,
  };
}

function layerTape(config: ZambaConfig, { shared, layers }: ZambaWeights, layer: number): LayerGraph {
  const { hidden, normEps } = config;
  const { norm, linear, mamba: weights } = layers[layer]!;
  return tape(`layers.${layer}`, (t) => {
    const h = t.input('x', hidden);
    // The block's output reaches the stream through the Mamba layer only: the residual is h, not h + t.
    const u = linear ? t.add(h, t.linear(transformer(t, config, shared, h, layer), linear)) : h;
    t.output('x', t.add(h, mamba(t, config, weights, t.norm(u, norm, normEps), layer)));
  });
}

/** The shared block; no residual around attention or MLP, no position encoding. h [N, hidden] to [N, hidden]. */
function transformer(t: TapeWriter, config: ZambaConfig, weights: SharedWeights, h: Value, layer: number): Value {
  const { hidden, heads, kvHeads, headDim, normEps, activation } = config;
  const n = t.norm(t.concat(h, t.input('embedded', hidden)), weights.inputNorm, normEps); // [N, 2 hidden]
  const q = t.linear(n, weights.query);
  const k = t.linear(n, weights.key);
  const v = t.linear(n, weights.value);
  const kv = kvState(`layers.${layer}.kv`, { kvHeads, headDim });
  // Heads are twice as wide as hidden / heads, and the scale is that of the narrow ones.
  const scale = (headDim / 2) ** -0.5;
  const o = t.node({ op: 'softmaxAttention', q, k, v, state: kv.name, heads, kvHeads, headDim, scale }, kv);
  const z = t.norm(t.linear(o, weights.output), weights.outputNorm, normEps);
  return t.linear(t.mul(t.activate(t.linear(z, weights.gate), activation), t.linear(z, weights.up)), weights.down);
}

/** Mamba-1 with several heads. u [N, hidden] to [N, hidden]. */
function mamba(t: TapeWriter, config: ZambaConfig, weights: MambaWeights, u: Value, layer: number): Value {
  const { channels, mambaHeads: heads, kernel, stateSize } = config;
  const x = t.linear(u, weights.x);
  const z = t.linear(u, weights.z);
  const conv = convState(`layers.${layer}.conv`, channels, kernel);
  const bias = weights.convBias === undefined ? {} : { bias: weights.convBias };
  const mixed = t.node({ op: 'causalConv', x, weight: weights.conv, ...bias, state: conv.name }, conv);
  const active = t.activate(mixed, 'silu');
  const { dt, b, c } = selection(t, config, weights, active);
  const scan = scanState(`layers.${layer}.scan`, channels, stateSize);
  const { logA, d } = weights;
  const y = t.node({ op: 'selectiveScan', x: active, dt, b, c, logA, d, state: scan.name, heads }, scan);
  return t.linear(t.mul(y, t.activate(z, 'silu')), weights.out);
}

/** Time steps [N, channels], B and C [N, heads * n], every head from its own channels with its own weights. */
function selection(
  t: TapeWriter,
  { channels, mambaHeads, timeRank, stateSize }: ZambaConfig,
  { select, time, timeBias }: MambaWeights,
  x: Value,
): { dt: Value; b: Value; c: Value } {
  const width = channels / mambaHeads;
  const heads = Array.from({ length: mambaHeads }, (_, head) => {
    const p = t.linear(t.slice(x, head * width, (head + 1) * width), select[head]!); // time rank, then B, then C
    const low = t.slice(p, 0, timeRank);
    return {
      dt: t.linear(low, time[head]!, timeBias[head]!),
      b: t.slice(p, timeRank, timeRank + stateSize),
      c: t.slice(p, timeRank + stateSize, timeRank + 2 * stateSize),
    };
  });
  const all = (part: 'dt' | 'b' | 'c'): Value => heads.map((head) => head[part]).reduce((a, b) => t.concat(a, b));
  return { dt: t.activate(all('dt'), 'softplus'), b: all('b'), c: all('c') };
}
