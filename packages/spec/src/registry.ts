import type { AttentionBackend, Device, OpenOptions } from './backend.js';
import { DslaError } from './errors.js';

/**
 * Opens the first backend that works. An open list: a backend is a value, loaded by `import` wherever the caller likes.
 * @throws DslaError E_UNAVAILABLE with every backend's reasons.
 */
export async function openBackend(backends: readonly AttentionBackend[], options?: OpenOptions): Promise<Device> {
  const reasons: string[] = [];
  for (const backend of backends) {
    const obstacles = await backend.obstacles(options);
    if (obstacles.length > 0) {
      reasons.push(...obstacles.map((obstacle) => `${backend.name}: ${obstacle}`));
      continue;
    }
    try {
      return await backend.open(options);
    } catch (error) {
      reasons.push(`${backend.name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  throw new DslaError('E_UNAVAILABLE', {
    where: 'openBackend',
    rule: `none of ${backends.length} backends opened: ${reasons.join(' | ') || 'the list is empty'}`,
    cure: 'Run `dsla doctor` for what each one needs.',
    details: { reasons },
  });
}
