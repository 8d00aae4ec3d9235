/** How far a backend may be from the truth. A change of one of these needs a reason in the commit. */
export interface Tolerance {
  /** RMS error ratio |a - b| / |b| of outputs and states against the float64 reference or a golden vector. */
  readonly forward: number;
  /** The same of states after the last step, where the compute type rounds every value on the way. */
  readonly states: number;
  /** The same between two ways on one device: steps against one pass, fold against prefill. */
  readonly same: number;
  /** RMS error ratio where float32 itself loses digits: decays of e^-300 a token, scores around 100. */
  readonly extreme: number;
  /** Largest single difference, in units of the RMS of the expected values, as a multiple of the RMS tolerance. */
  readonly peak: number;
}

/** For devices that compute in float32: the RMS ratio of flash-linear-attention's own float32 tests is 5e-3, ours is stricter. */
export const float32: Tolerance = { forward: 1e-5, states: 1e-5, same: 1e-5, extreme: 1e-4, peak: 30 };

/**
 * For devices that compute in float16 (11 bits: 5e-4 a rounding). States: with every value rounded to float16 between its nodes, and
 * each node in float32, those of the selective scan are off by up to 4.7e-3.
 */
export const float16: Tolerance = { forward: 5e-3, states: 7e-3, same: 5e-3, extreme: 2e-2, peak: 30 };
