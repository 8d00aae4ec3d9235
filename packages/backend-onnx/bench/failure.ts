import { isDslaError } from '@dsla/spec';

/** What work fails with: code and message of a DslaError, the text of another, or none. */
export async function failure(work: () => unknown): Promise<Record<string, unknown>> {
  try {
    await work();
    return { error: 'none' };
  } catch (error) {
    return isDslaError(error) ? { error: error.code, message: error.message } : { error: String(error) };
  }
}
