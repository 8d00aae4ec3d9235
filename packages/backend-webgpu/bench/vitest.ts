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
    toEqual: (want) => check(fits(got, want), 'must equal', want),
    toBe: (want) => check(Object.is(got, want), 'must be', want),
    toMatch: (want) => check(matches(String(got), want), 'must match', want),
    toBeDefined: () => check(got !== undefined, 'must be', 'defined'),
    toContain: (want) => check((got as unknown[]).includes(want), 'must contain', want),
    toBeLessThan: (want) => check((got as number) < want, 'must be less than', want),
    toBeGreaterThan: (want) => check((got as number) > want, 'must be greater than', want),
    toThrow: (want) => check(fits(thrown(got as () => unknown), want), 'must throw', want),
    toMatchObject: (want) =>
      check(
        Object.entries(want).every(([key, value]) => fits(Reflect.get(got as object, key), value)),
        'must match',
        want,
      ),
    rejects: {
      async toEqual(want) {
        const error = await reasonOf(got as Promise<unknown>);
        check(fits(error, want), `rejected with ${shown(error)}, must reject with`, want);
      },
      async toThrow(want) {
        const error = await reasonOf(got as Promise<unknown>);
        if (!(error instanceof Error && want.test(error.message))) throw new Error(`${what} must reject with ${want}`);
      },
    },
  };
}

expect.stringMatching = (want: string | RegExp): Pattern => new Pattern((got) => matches(String(got), want));
expect.objectContaining = (want: object): Pattern =>
  new Pattern((got) => Object.entries(want).every(([key, value]) => fits(Reflect.get(got as object, key), value)));

/** Stands for every value that it fits. */
class Pattern {
  readonly fits: (got: unknown) => boolean;

  constructor(fits: (got: unknown) => boolean) {
    this.fits = fits;
  }
}

function fits(got: unknown, want: unknown): boolean {
  return want instanceof Pattern ? got !== undefined && want.fits(got) : isDeepStrictEqual(got, want);
}

function thrown(run: () => unknown): unknown {
  try {
    run();
    return undefined;
  } catch (error) {
    return error;
  }
}

async function reasonOf(promise: Promise<unknown>): Promise<unknown> {
  return await promise.then(
    () => undefined,
    (reason) => reason,
  );
}

interface Matchers {
  toEqual(want: unknown): void;
  toBe(want: unknown): void;
  toMatch(want: string | RegExp): void;
  toBeDefined(): void;
  toContain(want: unknown): void;
  toBeLessThan(want: number): void;
  toBeGreaterThan(want: number): void;
  toThrow(want: unknown): void;
  toMatchObject(want: object): void;
  readonly rejects: { toEqual(want: unknown): Promise<void>; toThrow(want: RegExp): Promise<void> };
}

function matches(text: string, want: string | RegExp): boolean {
  return typeof want === 'string' ? text.includes(want) : want.test(text);
}

function shown(value: unknown): string {
  return value instanceof Error ? value.message : (JSON.stringify(value) ?? String(value)).slice(0, 200);
}
