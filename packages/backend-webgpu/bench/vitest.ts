import { isDeepStrictEqual } from 'node:util';

// What the conformance suite uses of vitest, for hosts without it: bundle with --alias:vitest=./bench/vitest.ts.

type Run = () => unknown;

export interface Outcome {
  readonly passed: number;
  readonly failed: readonly { readonly name: string; readonly message: string }[];
}

const queued = { before: [] as Run[], after: [] as Run[], tests: [] as { name: string; run: Run }[] };

export function describe(_name: string, body: Run): void {
  body();
}

export const beforeAll = (run: Run): void => void queued.before.push(run);
export const afterAll = (run: Run): void => void queued.after.push(run);

const add = (name: string, run: Run): void => void queued.tests.push({ name, run });
export const test = Object.assign(add, { skipIf: (skip: boolean) => (skip ? () => undefined : add) });

/** Runs what was registered since the last call. */
export async function runAll(): Promise<Outcome> {
  const { before, after, tests } = queued;
  const failed: { name: string; message: string }[] = [];
  const rest = [before, after, tests].map((list) => list.splice(0)) as [Run[], Run[], typeof tests];
  for (const run of rest[0]) await run();
  for (const { name, run } of rest[2]) {
    try {
      await run();
    } catch (error) {
      failed.push({ name, message: String(error instanceof Error ? error.message : error).slice(0, 300) });
    }
  }
  for (const run of rest[1]) await run();
  return { passed: rest[2].length - failed.length, failed };
}

export function expect(got: unknown, what = ''): Matchers {
  const check = (ok: boolean, rule: string, want: unknown) => {
    if (!ok) throw new Error(`${what} ${shown(got)} ${rule} ${shown(want)}`);
  };
  return {
    toEqual: (want) => check(isDeepStrictEqual(got, want), 'must equal', want),
    toBe: (want) => check(Object.is(got, want), 'must be', want),
    toMatch: (want) => check(matches(String(got), want), 'must match', want),
    toBeLessThan: (want) => check((got as number) < want, 'must be less than', want),
    toMatchObject: (want) =>
      check(
        Object.entries(want).every(([key, value]) => isDeepStrictEqual(Reflect.get(got as object, key), value)),
        'must match',
        want,
      ),
    rejects: {
      async toThrow(want) {
        const error = await (got as Promise<unknown>).then(
          () => undefined,
          (reason) => reason,
        );
        if (!(error instanceof Error && want.test(error.message))) throw new Error(`${what} must reject with ${want}`);
      },
    },
  };
}

interface Matchers {
  toEqual(want: unknown): void;
  toBe(want: unknown): void;
  toMatch(want: string | RegExp): void;
  toBeLessThan(want: number): void;
  toMatchObject(want: object): void;
  readonly rejects: { toThrow(want: RegExp): Promise<void> };
}

function matches(text: string, want: string | RegExp): boolean {
  return typeof want === 'string' ? text.includes(want) : want.test(text);
}

function shown(value: unknown): string {
  return value instanceof Error ? value.message : (JSON.stringify(value) ?? String(value)).slice(0, 200);
}
