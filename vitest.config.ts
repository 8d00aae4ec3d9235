import { defineConfig } from 'vitest/config';

export default defineConfig({
  resolve: { conditions: ['@dsla/source'] },
  ssr: { resolve: { conditions: ['@dsla/source', 'node', 'import', 'default'] } },
  test: {
    include: ['{packages,apps,tools}/**/*.test.ts'],
    // Native addons and worker threads crash together; each file gets a process of its own.
    pool: 'forks',
    testTimeout: 60_000,
    reporters: ['default', './tools/summary-reporter.ts'],
  },
});
