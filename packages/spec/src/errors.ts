/** Stable codes: programs may branch on them, messages may change. */
export type ErrorCode =
  | 'E_INPUT' // the caller passed something that breaks a rule
  | 'E_FORMAT' // a file is damaged or not what it claims to be
  | 'E_CONFIG' // a model's configuration is incomplete or contradicts its weights
  | 'E_UNSUPPORTED' // a valid request that this backend or version cannot serve
  | 'E_UNAVAILABLE' // a backend, device or optional package is missing
  | 'E_DISPOSED' // use after dispose
  | 'E_MEMORY' // an allocation failed
  | 'E_DEVICE' // the device was lost or its runtime failed
  | 'E_IO' // the file system refused
  | 'E_ABORTED' // an AbortSignal fired
  | 'E_INTERNAL'; // an invariant of ours is broken

export interface ErrorParts {
  /** Function, file, layer or node at fault: `layers.7.attention on onnx`. */
  readonly where: string;
  /** The rule that was broken: `window must be at least 1`. */
  readonly rule: string;
  /** The offending value, printed after "got". */
  readonly got?: unknown;
  /** What the reader should do, as a sentence. */
  readonly cure?: string;
  readonly details?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

/** The only error class of the project. Message form: `where: rule, got value. What to do.` */
export class DslaError extends Error {
  readonly code: ErrorCode;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, parts: ErrorParts) {
    const got = 'got' in parts ? `, got ${show(parts.got)}` : '';
    const cure = parts.cure ? ` ${parts.cure}` : '';
    super(
      `${parts.where}: ${parts.rule}${got}.${cure}`,
      parts.cause === undefined ? undefined : { cause: parts.cause },
    );
    this.name = 'DslaError';
    this.code = code;
    this.details = parts.details ?? {};
  }
}

/** True for errors of this project, also across two copies of this package. */
export function isDslaError(error: unknown): error is DslaError {
  return error instanceof Error && error.name === 'DslaError' && 'code' in error;
}

/** Throws E_ABORTED once the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined, where: string): void {
  if (!signal?.aborted) return;
  throw new DslaError('E_ABORTED', { where, rule: 'stopped by the caller', cause: signal.reason });
}

function show(value: unknown): string {
  const text =
    typeof value === 'string' ? JSON.stringify(value) : Array.isArray(value) ? `[${value.join(', ')}]` : String(value);
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
