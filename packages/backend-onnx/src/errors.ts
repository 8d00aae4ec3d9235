import { DslaError } from '@dsla/spec';

export function invalid(where: string, rule: string, got: unknown): DslaError {
  return new DslaError('E_INPUT', { where, rule, got });
}

export function disposed(where: string): DslaError {
  return new DslaError('E_DISPOSED', { where, rule: 'must not be used after dispose', cure: 'Make a new one.' });
}
