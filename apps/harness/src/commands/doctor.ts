import { availableParallelism, cpus, totalmem } from 'node:os';
import { tapesOf } from '@dsla/models';
import { type Device, isDslaError } from '@dsla/spec';
import type { Command } from 'commander';
import {
  backendVersions,
  deviceSetting,
  devicesOf,
  importBackend,
  knownBackends,
  type Requirement,
  requirementsOf,
  type Tuning,
  tuningOf,
} from '../backends.js';
import { type Checkpoint, describeConversion, inspect, type Mixer, mixers, untuned } from '../checkpoint.js';
import { ownVersion } from '../report/machine.js';
import { colorsFor, type Io, print, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions, names } from '../ui/options.js';
import { formatBytes } from '../ui/units.js';

interface DoctorOptions extends CommonOptions {
  readonly model?: string;
  readonly backend: readonly string[];
  readonly fix?: true;
  readonly tune?: true;
}

interface BackendState {
  readonly name: string;
  /** Of those that it has, where it has several. */
  readonly device?: string;
  readonly works: boolean;
  readonly description: string | null;
  readonly versions: Readonly<Record<string, string>>;
  readonly obstacles: readonly string[];
  /** Where its kernels are chosen by timing them: what was chosen. */
  readonly tuning?: readonly Tuning[];
  /** With --fix, where it does not work: what it needs, whether or not it is there. */
  readonly requirements?: readonly Requirement[];
  /** By mixer ('softmax' for the model's own attention), for the model asked about. */
  readonly unsupported?: Readonly<Record<string, readonly string[]>>;
}

export function addDoctor(program: Command, io: Io): void {
  const command = program
    .command('doctor')
    .description('what works on this machine, and what is missing')
    .option('-m, --model <folder>', 'also ask every backend what of this model it cannot run')
    .option('-b, --backend <names>', 'backends to ask', names, Object.keys(knownBackends))
    .option('--fix', 'explain what to install for what does not work')
    .option('--tune', 'time the ways to cut the kernels of a GPU, and keep the fastest');
  addCommonOptions(command).action((options: DoctorOptions) => runDoctor(options, io));
}

async function runDoctor(options: DoctorOptions, io: Io): Promise<void> {
  const checkpoint = options.model === undefined ? undefined : await inspect(options.model);
  const machine = {
    dsla: ownVersion,
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
  };
  const backends: BackendState[] = [];
  for (const name of options.backend) {
    for (const device of devicesOf(name)) {
      const state = await examine(name, device, { checkpoint, tune: options.tune === true, signal: io.signal });
      const requirements = options.fix && !state.works && (await requirementsOf(name, device));
      backends.push(requirements ? { ...state, requirements } : state);
    }
  }
  if (options.json) {
    printJson(io, { ...machine, backends });
    return;
  }
  print(
    io,
    [
      `dsla ${machine.dsla}, Node ${machine.node}, ${machine.platform}`,
      `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)}`,
      ...backends.flatMap((state) => describeState(state, io)),
    ].join('\n'),
  );
}

interface Examination {
  readonly checkpoint: Checkpoint | undefined;
  readonly tune: boolean;
  readonly signal: AbortSignal;
}

/** `device`: of the backend; undefined for its default. */
async function examine(
  name: string,
  device: string | undefined,
  { checkpoint, tune, signal }: Examination,
): Promise<BackendState> {
  const versions = backendVersions(name);
  const missing = { name, ...(device !== undefined && { device }), works: false, description: null, versions };
  const options = { signal, ...(device !== undefined && { extra: deviceSetting(name, device) }) };
  try {
    const backend = await importBackend(name);
    const obstacles = await backend.obstacles(options);
    if (obstacles.length > 0) return { ...missing, obstacles };
    const tuning = await tuningOf(name, tune, options);
    await using opened = await backend.open(options);
    const unsupported = checkpoint && unsupportedOf(checkpoint, opened);
    return {
      ...missing,
      works: true,
      description: opened.description,
      obstacles,
      ...(tuning && { tuning }),
      ...(unsupported && { unsupported }),
    };
  } catch (error) {
    if (signal.aborted || (isDslaError(error) && error.code === 'E_INPUT')) throw error;
    return { ...missing, obstacles: [error instanceof Error ? error.message : String(error)] };
  }
}

function unsupportedOf(checkpoint: Checkpoint, device: Device): Record<string, readonly string[]> {
  const ask = (mixer: Mixer, level: number): readonly string[] => {
    try {
      const tapes = tapesOf(describeConversion(checkpoint, untuned(mixer, level)));
      return [...new Set(tapes.flatMap((graph) => device.unsupported(graph)))];
    } catch (error) {
      return [error instanceof Error ? error.message : String(error)];
    }
  };
  const converted = checkpoint.convertible === 0 ? [] : (Object.keys(mixers) as Mixer[]);
  return {
    softmax: ask('foldable', 0),
    ...Object.fromEntries(converted.map((mixer) => [mixer, ask(mixer, checkpoint.convertible)])),
  };
}

function describeState(state: BackendState, io: Io): string[] {
  const { name, device, works, description, versions, obstacles, requirements, tuning, unsupported } = state;
  const colors = colorsFor(io.out, io.env);
  const packages = Object.entries(versions).map(([each, version]) => `${each} ${version}`);
  return [
    '',
    `${works ? colors.green('ok     ') : colors.red('missing')} ${name}${device === undefined ? '' : `, ${device}`}: ${description ?? 'does not open'}`,
    ...(packages.length > 0 ? [`        ${packages.join(', ')}`] : []),
    ...obstacles.map((obstacle) => `        ${obstacle}`),
    ...(tuning?.length === 0 ? ['        kernels as they come; `dsla doctor --tune` chooses by time'] : []),
    ...(tuning ?? []).map(({ kernel, chosen }) => `        ${kernel}: ${chosen}, by time`),
    ...(requirements ? ['        It needs:'] : []),
    ...(requirements ?? []).map(({ name: what, version, install }) => `        - ${what} ${version}. ${install}.`),
    ...Object.entries(unsupported ?? {}).map(
      ([mixer, reasons]) =>
        `        ${mixer}: ${reasons.length === 0 ? 'runs' : [...new Set(reasons.map(anyLayer))].join(' | ')}`,
    ),
  ];
}

// What is missing in one layer is mostly missing in all.
function anyLayer(reason: string): string {
  return reason.replace(/^layers\.\d+\./, 'layers.*.');
}
