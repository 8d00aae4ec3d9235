import { referenceBackend } from '@dsla/reference';
import type { Device } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Bench, Case } from './case.js';
import { cases } from './cases/index.js';
import { float32, type Tolerance } from './tolerance.js';

/** Tests that a backend cannot pass yet. */
export interface Skip {
  /** A sentence, printed after the run. */
  readonly reason: string;
  /** Parts of test names: `softmaxAttention > head width 464`. Each must match at least one test. */
  readonly tests: readonly string[];
}

export interface ConformanceOptions {
  readonly name: string;
  /** Called for the suite's device and again by tests that need one of their own. The suite disposes what it opens. */
  readonly open: () => Promise<Device>;
  /** Replaces the float32 defaults of tolerance.ts. */
  readonly tolerance?: Partial<Tolerance>;
  readonly skip?: readonly Skip[];
}

/** Registers the vitest suites that every backend must pass. */
export function backendConformance({ name, open, tolerance, skip = [] }: ConformanceOptions): void {
  describe(`${name} conformance`, () => {
    let bench: Bench | undefined;
    beforeAll(async () => {
      const [device, reference] = [await open(), await referenceBackend.open()];
      bench = { device, reference, tolerance: { ...float32, ...tolerance }, open };
    });
    afterAll(async () => {
      await bench?.device[Symbol.asyncDispose]();
      await bench?.reference[Symbol.asyncDispose]();
      for (const { reason, tests } of skip) console.info(`${name} skips ${tests.join(', ')}: ${reason}`);
    });

    test('every skip entry matches a test', () => expect(unmatched(skip, cases)).toEqual([]));

    for (const item of cases) {
      const skipped = skip.some(({ tests }) => tests.some((part) => item.name.includes(part)));
      test.skipIf(skipped)(item.name, async () => await item.run(bench!));
    }
  });
}

/** Parts of names in skip entries that match no case. */
export function unmatched(skip: readonly Skip[], all: readonly Case[]): string[] {
  return skip.flatMap(({ tests }) => tests.filter((part) => !all.some(({ name }) => name.includes(part))));
}
