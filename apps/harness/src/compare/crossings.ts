import { breakEven, type Curve } from '../measure/break-even.js';
import type { Contender, Crossing, Report } from '../report/report.js';

type Measured = Pick<Report, 'contenders' | 'speed' | 'cache'> & { readonly backends: readonly string[] };

/** Where every other contender of the same checkpoint, and Zamba, begins to cost less than the softmax model. */
export function crossings({ contenders, speed, cache, backends }: Measured): Crossing[] {
  const softmax = contenders.find(({ family }) => family === 'softmax');
  if (!softmax) return [];
  const others = contenders.filter((contender) => contender !== softmax);
  // Milliseconds a token, or bytes, by length.
  const timeCurve = (of: Contender, test: 'prefill' | 'decode', backend: string): Curve =>
    speed
      .filter((row) => row.contender === of.id && row.test === test && row.backend === backend)
      .map(({ length, median }) => ({ length, cost: 1000 / median }));
  const cacheCurve = (of: Contender): Curve =>
    cache.filter((row) => row.contender === of.id).map(({ length, bytes }) => ({ length, cost: bytes }));

  return others.flatMap((other) => {
    const crossing = (quantity: Crossing['quantity'], backend: string, baseline: Curve, own: Curve): Crossing[] =>
      own.length === 0 || own.length !== baseline.length
        ? []
        : [
            {
              contender: other.id,
              against: softmax.id,
              backend,
              quantity,
              from: breakEven(baseline, own),
              shortest: own[0]!.length,
              longest: own.at(-1)!.length,
            },
          ];
    return [
      ...backends.flatMap((backend) =>
        (['prefill', 'decode'] as const).flatMap((test) =>
          crossing(test, backend, timeCurve(softmax, test, backend), timeCurve(other, test, backend)),
        ),
      ),
      ...crossing('cache', backends[0]!, cacheCurve(softmax), cacheCurve(other)),
    ];
  });
}
