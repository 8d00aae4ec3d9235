import type { BaselineChain, Measured, Quality } from './conversion-record.js';
import { grouped, percent, signed, table } from './tables.js';

/** What this page reads of docs/results/ablations.json. */
export interface Ablations {
  readonly setups: readonly { readonly device: string; readonly logWeight?: number; readonly far?: number }[];
  readonly results: readonly AblationRow[];
}

interface AblationRow {
  readonly block: string;
  readonly variant: string;
  readonly seed: number | null;
  readonly setup: number;
  readonly tokens: number;
  /** [right, asked] by distance, from the nearest to the farthest. */
  readonly recall: readonly (readonly [right: number, asked: number])[];
}

/** Bits per byte of every contender by context, and above softmax. */
export function bitsTable({ contenders, bitsPerByte, excess }: Quality, withBytes = false): string[] {
  const lengths = [...new Set(bitsPerByte.map(({ length }) => length))];
  const rows = contenders.map(({ id, bytes }) => [
    id,
    ...(withBytes ? [grouped(bytes ?? 0)] : []),
    ...lengths.map((length) => {
      const own = bitsPerByte.find((row) => row.contender === id && row.length === length)!.estimate.value;
      const more = excess.find((row) => row.contender === id && row.length === length)?.estimate;
      const half =
        more && more.high !== null && more.low !== null ? ` ± ${((more.high - more.low) / 2).toFixed(4)}` : '';
      return `${own.toFixed(4)}${more ? ` (${signed(more.value, 4)}${half})` : ''}`;
    }),
  ]);
  return table(['', ...(withBytes ? ['bytes a layer'] : []), ...lengths.map(grouped)], rows);
}

/** Of the bits per byte of the softmax model. */
export function changeOf({ bitsPerByte, excess }: Quality, id: string, length: number): number {
  const of = <T extends { readonly contender: string; readonly length: number }>(
    rows: readonly T[],
    contender: string,
  ) => rows.find((row) => row.contender === contender && row.length === length)!;
  return of(excess, id).estimate.value / of(bitsPerByte, 'softmax').estimate.value;
}

/** What a state adds to a window, and what a wider window would. */
export function besidePart({ beside }: Measured): string[] {
  if (!beside) return [];
  const change = (id: string, length: number) => changeOf(beside, id, length);
  const bytes = (id: string) => grouped(beside.contenders.find((each) => each.id === id)?.bytes ?? 0);
  const levels = [...new Set(beside.contenders.filter(({ level }) => level > 0).map(({ level }) => level))];
  const lengths = [...new Set(beside.bitsPerByte.map(({ length }) => length))];
  const gain = (id: string, base: string, length: number) => {
    const of = (wanted: string) =>
      beside.bitsPerByte.find((row) => row.contender === wanted && row.length === length)!.estimate.value;
    return percent(of(id) / of(base) - 1);
  };
  const gains = levels.flatMap((level) =>
    [
      ['tuned64', 'window64'],
      ['tuned256', 'window256'],
      ['untuned64', 'window64'],
      ['untuned256', 'window256'],
      ['tuned64', 'window195'],
      ['tuned64', 'window256'],
    ].map(([id, base]) => [
      `${level}`,
      `${id} against ${base}`,
      `${bytes(`${id}-${level}`)} against ${bytes(`${base}-${level}`)}`,
      ...lengths.map((length) => gain(`${id}-${level}`, `${base}-${level}`, length)),
    ]),
  );
  const wide = ['window195', 'window256'];
  const verdicts = levels.map((level) => {
    const cells = lengths.map((length) => {
      const state = change(`tuned64-${level}`, length);
      const better = wide.filter((id) => change(`${id}-${level}`, length) < state);
      const own = `${grouped(length)} tokens: ${percent(state)}`;
      const others = wide.map((id) => `${id} ${percent(change(`${id}-${level}`, length))}`).join(', ');
      return `${own} (${others}), ${better.length === 0 ? 'the states are better' : `better: ${better.join(' and ')}`}`;
    });
    return `Level ${level}, the tuned states beside 64 against softmax. ${cells.join('; ')}.`;
  });
  return [
    '## What a state adds to a window, and what a wider window would',
    '',
    `The window alone, with untuned and with tuned states beside it, on ${beside.windows} windows of ${grouped(lengths.at(-1)!)} tokens: twice the training length, where softmax itself fails. The tuned states are those of the conversion, which was tuned beside a window of 64; beside 256 they were not tuned again. Bytes: of one sequence in one layer, ${bytes('softmax')} for softmax at 4,096 tokens. Every window has 4 sinks; window195 takes as many bytes as 64 with two states.`,
    '',
    ...bitsTable(beside, true),
    'Change in bits per byte, percent, on the same windows:',
    '',
    ...table(['level', '', 'bytes a layer', ...lengths.map(grouped)], gains),
    'Where the states pay, and where a wider window without training is the better buy:',
    '',
    ...verdicts.map((line) => `- ${line}`),
    '',
  ];
}

/** Baselines that were tuned with one small budget, ours beside them. */
export function baselinePart({ baselines, quality }: Measured): string[] {
  if (!baselines) return [];
  const { chains } = baselines;
  const [{ recipe, device, host }] = chains as [BaselineChain];
  const steps = ({ match, logits }: BaselineChain['recipe']) =>
    `${match.steps} of match at ${match.rate} (${match.loss === 'kl' ? 'KL of y, gate cosine' : 'squared error, half-lives'})${logits.steps > 0 ? `, ${logits.steps} of logits at ${logits.rate}` : ''}`;
  const rows = chains.map(({ name, level, tokens, seconds, sha256, recipe: own }) => [
    name,
    steps(own),
    grouped(Math.round(tokens / level)),
    `${level}`,
    seconds.toFixed(0),
    sha256.slice(0, 12),
  ]);
  const beside = quality.contenders.filter(({ id }) => /^(tuned|single|published)-[4578]$/.test(id));
  const row =
    (from: Quality) =>
    ({ id }: { readonly id: string }) => [id, ...[512, 4096].map((length) => percent(changeOf(from, id, length)))];
  const compared = [
    ...baselines.contenders.filter(({ level }) => level > 0).map(row(baselines)),
    ...beside.map(row(quality)),
  ];
  return [
    '## Baselines that are tuned too',
    '',
    `Tuned by @dsla/distill with a small budget, the same for all: windows of ${grouped(recipe.tokens)} tokens, ${recipe.match.rows * recipe.match.accumulate} a step; ${device} on ${host.gpu}, three at once beside other work, so the seconds are no speed. Not committed. ours: two states; single: one; published: as in the paper, with its own q, k, v, o. Time ended in the last layer of ours, before its logits stage, and with published at the level below.`,
    '',
    ...table(['', 'steps a layer', 'tokens a layer', 'levels', 'seconds', 'sha256'], rows),
    'Change in bits per byte against softmax on the windows of the tables above, and of the rows there:',
    '',
    ...table(['', '512', '4,096'], compared),
    ...summary(baselines),
  ];
}

/** Two states against one, with the same tokens. */
function summary(baselines: Quality): string[] {
  const change = (id: string) => changeOf(baselines, id, 4096);
  const lines = [4, 7, 8].map((level) => {
    const [two, one] = [change(`small-ours-${level}`), change(`small-single-${level}`)];
    return `${percent(two)} against ${percent(one)} at level ${level}`;
  });
  return [`Two states against one with the same tokens, at 4,096: ${lines.join(', ')}.`, ''];
}

/** What was tried for recall in the recall layer, from the ablations. */
export function recallPart({ setups, results }: Ablations): string[] {
  const rows = results.filter(({ block }) => block === 'recall');
  const share = ({ recall }: AblationRow) =>
    recall.reduce((sum, [right]) => sum + right, 0) / recall.reduce((sum, [, asked]) => sum + asked, 0);
  const tuned = rows.filter(({ seed }) => seed !== null);
  const alone = new Map(rows.filter(({ seed }) => seed === null).map((row) => [row.variant, row]));
  const best = [...tuned].sort((a, b) => share(b) - share(a))[0];
  if (!best) return [];
  const small = tuned
    .filter(({ variant }) => !/window (256|512)/.test(variant))
    .sort((a, b) => share(b) - share(a))[0]!;
  const far = (row: AblationRow) => row.recall.slice(4).reduce((sum, [right]) => sum + right, 0);
  const asked = best.recall.slice(4).reduce((sum, [, n]) => sum + n, 0);
  const text = (value: number) => value.toFixed(3);
  const [found, window] = [share(small), share(alone.get('window 64, untrained')!)];
  return [
    '## The best recall that a state can give',
    '',
    `With all layers converted the one that carries recall is converted too. It was converted alone and tuned for recall, answers weighing five times as much as text, on one ${setups[best.setup]!.device} (docs/results/ablations.md, section 6). Shares of right answers over all distances; rate: of the states' weight, the mix and the gates' biases, against the other weights.`,
    '',
    ...table(
      ['', 'tokens', 'rate', 'recall', 'of which from 512 tokens on'],
      [...alone.values(), ...tuned].map((row) => [
        row.variant,
        grouped(row.tokens),
        row.seed === null ? '' : `x ${setups[row.setup]!.far ?? 1}`,
        text(share(row)),
        `${far(row)} of ${asked}`,
      ]),
    ),
    `The best state gives ${text(share(best))} (${best.variant}); beside a window of 64 ${text(found)} (${small.variant}), ${found > window ? 'more' : 'no more'} than the ${text(window)} of the window alone. From 512 tokens on no form has more than ${Math.max(...tuned.map(far))} right. So at 8 / 8 recall is what the window reaches, and the layer that carries it should stay softmax.`,
    '',
  ];
}
