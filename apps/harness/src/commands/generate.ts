import { text as readAll } from 'node:stream/consumers';
import { generate, type Usage } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import type { Command } from 'commander';
import { openModel } from '../checkpoint.js';
import { pause } from '../measure/pause.js';
import { type Io, printJson } from '../ui/io.js';
import { addCommonOptions, type CommonOptions, whole, within } from '../ui/options.js';
import { openProgress } from '../ui/progress.js';
import { significant } from '../ui/units.js';
import { addModelOptions, inspectOptions, type ModelOptions, openDevice } from './model-options.js';

interface GenerateOptions extends CommonOptions, ModelOptions {
  readonly maxTokens: number;
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly repetitionPenalty?: number;
  readonly seed?: number;
  readonly stop?: readonly string[];
}

export function addGenerate(program: Command, io: Io): void {
  const command = program
    .command('generate')
    .description('continue a text; it streams to stdout')
    .argument('[prompt]', 'text to continue (default: stdin)')
    .option('-n, --max-tokens <n>', 'most tokens to generate', whole(1), 128)
    .option('--temperature <t>', 'divides the logits; 0 is greedy (default: 0)', within(0, Number.POSITIVE_INFINITY))
    .option('--top-k <k>', 'only the k most likely tokens', whole(1))
    .option('--top-p <p>', 'only the most likely tokens that sum to p', within(0, 1))
    .option('--repetition-penalty <x>', 'above 1 avoids tokens seen before', within(0, Number.POSITIVE_INFINITY))
    .option('--seed <n>', 'draws the same tokens again', whole(0))
    .option('--stop <text>', 'ends before this text; may be given again', (text, all: string[] = []) => [...all, text]);
  addCommonOptions(addModelOptions(command)).action((prompt: string | undefined, options: GenerateOptions) =>
    runGenerate(prompt, options, io),
  );
}

async function runGenerate(argument: string | undefined, options: GenerateOptions, io: Io): Promise<void> {
  const prompt = argument ?? (io.in.isTTY ? '' : await readAll(io.in));
  if (prompt === '') {
    throw new DslaError('E_INPUT', {
      where: 'prompt',
      rule: 'must hold at least one character',
      got: '',
      cure: 'Pass it as an argument or on stdin.',
    });
  }
  const { signal } = io;
  const { checkpoint, conversion } = await inspectOptions(options, signal);
  using progress = openProgress(io, options.quiet === true);
  await using device = await openDevice(options, signal);
  await using model = await openModel(checkpoint, conversion, device, { signal });

  const pieces: string[] = [];
  const { maxTokens, temperature, topK, topP, repetitionPenalty, seed, stop } = options;
  const sampling = { temperature, topK, topP, repetitionPenalty, seed };
  const stream = generate(model, prompt, { ...sampling, maxTokens, stop, signal });
  let next = await stream.next();
  for (; !next.done; next = await stream.next()) {
    if (options.json) pieces.push(next.value.text);
    else io.out.write(next.value.text);
    await pause(signal);
  }
  const usage = next.value;
  if (options.json)
    printJson(io, { model: checkpoint.name, backend: device.description, text: pieces.join(''), usage });
  else {
    io.out.write('\n');
    progress.note(summary(usage));
  }
}

function summary({ promptTokens, generatedTokens, prefillMs, decodeMs, finish }: Usage): string {
  const prefill = `${promptTokens} prompt tokens in ${significant(prefillMs)} ms`;
  const decode = `${generatedTokens} generated in ${significant(decodeMs)} ms`;
  return `${prefill}, ${decode}; ended by ${finish}.`;
}
