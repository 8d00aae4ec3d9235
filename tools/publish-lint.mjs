// publint on every public package: exports, types and files as npm will see them.
import { readdirSync, readFileSync } from 'node:fs';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';

let failures = 0;
for (const group of ['packages', 'apps']) {
  for (const name of readdirSync(new URL(`../${group}`, import.meta.url))) {
    const dir = new URL(`../${group}/${name}`, import.meta.url).pathname;
    const manifest = JSON.parse(readFileSync(`${dir}/package.json`, 'utf8'));
    const { messages } = await publint({ pkgDir: dir, strict: true, pack: false });
    for (const message of messages) {
      if (message.type === 'suggestion') continue;
      failures += 1;
      console.error(`${manifest.name}: ${formatMessage(message, manifest)}`);
    }
  }
}
if (failures > 0) process.exit(1);
