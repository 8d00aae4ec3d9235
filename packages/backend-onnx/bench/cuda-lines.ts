import type { Statistics } from '../../backend-webgpu/bench/synthetic.js';

// What cuda.ts, conformance.ts, faults.ts, left.ts, soak.ts and the peers print, and cells of the tables that cuda-page.ts makes of it.

/** A line as it was printed. */
export interface Line {
  readonly test?: string;
  readonly peer?: string;
  readonly fault?: string;
  readonly plan?: string;
  readonly tokens?: number;
  readonly batch?: number;
  /** How tokens were drawn (cuda.ts), the most likely ones where it is left out. */
  readonly drawing?: string;
  readonly milliseconds?: Statistics | number;
  /** Median of the time on the computing thread. */
  readonly inSessions?: number;
  /** Of one step. */
  readonly copied?: { readonly toDevice: number; readonly toHost: number };
  readonly memory?: number;
  /** By part of a step outside the sessions, the median of its milliseconds. */
  readonly outside?: Readonly<Record<string, number>>;
  readonly replayed?: boolean;
  readonly error?: string;
  readonly message?: string;
  /** Steps or devices so far, and bytes then: free on the device, of the process on the host. */
  readonly at?: number;
  readonly deviceFree?: number;
  readonly rss?: number;
  /** What was made and ended so often, and live bytes of the C library's heap then (left.ts). */
  readonly thing?: string;
  readonly live?: number;
  /** Whether the process lives, a device opened afterwards computes the same, and bytes free on the device before and after. */
  readonly lives?: boolean;
  readonly same?: boolean;
  readonly afterwards?: { readonly error?: string };
  readonly freeBefore?: number;
  readonly freeAfter?: number;
  readonly device?: string;
  readonly node?: string;
  readonly shape?: string;
  /** Type of the matrices, float16 where it is left out. */
  readonly weights?: string;
  readonly layers?: number;
  /** Of our own: on where it is left out. */
  readonly operators?: string;
  readonly command?: string;
  readonly computeType?: string;
  readonly passed?: number;
  readonly failed?: readonly { readonly name: string; readonly message: string }[];
  /** RMS of a difference over the RMS of what it is compared with. */
  readonly ratio?: number;
  readonly gbps?: number;
  readonly gigabytesPerSecond?: number;
  readonly driver?: string;
  readonly date?: string;
  /** Commit that was measured: of a host line, and of the lines that follow it in its file. */
  readonly code?: string | undefined;
  /** What a reader must know of the measurement. */
  readonly note?: string;
}

/** The plan, and what is not as usual. */
export function labelOf({ plan, weights = 'f16', operators }: Line): string {
  return [plan, weights !== 'f16' && weights, operators === 'off' && 'operators off'].filter(Boolean).join(', ');
}

export function figures({ milliseconds }: Line): string[] {
  const { median, sd, n } = milliseconds as Statistics;
  return [median.toFixed(2), sd.toFixed(2), String(n)];
}

export function median({ milliseconds }: Line): number {
  return (milliseconds as Statistics).median;
}

export function table(head: readonly string[], rows: readonly (readonly (string | number | undefined)[])[]): string {
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
}
