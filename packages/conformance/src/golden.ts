import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { DslaError, f32, type HostTensor } from '@dsla/spec';

// golden/ stands beside src/ in the repository and beside dist/ in the package.
const root = new URL('../golden/', import.meta.url);

/** What a library other than ours computed: settings of the case and named tensors. See golden/README.md for the names. */
export interface Golden {
  readonly settings: Readonly<Record<string, unknown>>;
  readonly tensors: ReadonlyMap<string, HostTensor>;
}

/** Names of the golden files of a folder, e.g. `ops`. */
export function goldenNames(folder: string): string[] {
  return readdirSync(new URL(`${folder}/`, root))
    .filter((name) => name.endsWith('.safetensors'))
    .sort();
}

/** Reads golden/<path>. @throws DslaError E_FORMAT unless its hash is that of manifest.json. */
export function readGolden(path: string): Golden {
  const bytes = readFileSync(new URL(path, root));
  const manifest = JSON.parse(readFileSync(new URL('manifest.json', root), 'utf8'));
  const want: string | undefined = manifest.files[path]?.sha256;
  const got = createHash('sha256').update(bytes).digest('hex');
  if (got !== want) {
    throw new DslaError('E_FORMAT', {
      where: `golden/${path}`,
      rule: `sha256 must be ${want ?? 'listed in manifest.json'}`,
      got,
      cure: `Make the files again: python ${manifest.script} --out packages/conformance/golden`,
    });
  }
  return parseSafetensors(bytes);
}

/** f32 and i32 tensors of a safetensors file: header length, JSON header, data. */
function parseSafetensors(bytes: Buffer): Golden {
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const { __metadata__: metadata, ...entries } = JSON.parse(bytes.toString('utf8', 8, start));
  const tensors = new Map<string, HostTensor>();
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries<Entry>(entries)) {
    const data = Uint8Array.from(bytes.subarray(start + offsets[0], start + offsets[1])).buffer; // aligned copy
    if (dtype === 'F32') tensors.set(name, f32(shape, new Float32Array(data)));
    else tensors.set(name, { dtype: 'i32', shape, data: new Int32Array(data) });
  }
  return { settings: JSON.parse(metadata.case), tensors };
}

interface Entry {
  readonly dtype: 'F32' | 'I32';
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}
