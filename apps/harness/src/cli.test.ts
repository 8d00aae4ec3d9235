import { expect, it } from 'vitest';
import { dsla, dslaProcess } from '../test/run.js';
import { tuningOf } from './backends.js';

it('prints help and versions on stdout', async () => {
  const help = await dsla(['--help']);
  expect(help).toMatchObject({ code: 0, err: '' });
  expect(Math.max(...help.out.split('\n').map((line) => line.length))).toBeLessThanOrEqual(80);
  const version = await dsla(['--version']);
  expect(version).toMatchObject({ code: 0, err: '' });
  expect(version.out).toMatch(/^dsla \d+\.\d+\.\d+$/m);
  expect(version.out).toContain(`node ${process.versions.node}`);
  expect(version.out).toMatch(/^onnxruntime-node \d/m);
});

it('leaves stdout empty and exits with 2 for wrong usage', async () => {
  for (const [args, message] of [
    [['bnch'], "dsla: unknown command 'bnch' (Did you mean bench?) See `dsla --help`.\n"],
    [['bench', '--levle', '1'], "dsla: unknown option '--levle' (Did you mean --level?) See `dsla --help`.\n"],
    [['bench', '--level', '-1'], /^dsla: .*whole number of at least 0\. See .*\n$/],
    [['bench', '--prompt', '1,x'], /^dsla: .*whole number of at least 0\. See .*\n$/],
    [['bench', '--mixer', 'mamba'], /^dsla: .*Allowed choices are foldable, window, single, published\. See .*\n$/],
    [['generate', 'a', '--top-p', '2'], /^dsla: .*number from 0 to 1\. See .*\n$/],
    [['doctor', '--backend', 'cuda'], /^dsla: --backend: must be one of onnx, .*reference, .*got "cuda"\. .*\n$/],
  ] as const) {
    const finished = await dsla(args);
    expect(finished).toMatchObject({ code: 2, out: '' });
    expect(finished.err).toMatch(message);
  }
  expect(await dsla([])).toMatchObject({ code: 2, out: '', err: expect.stringContaining('Usage: dsla') });
});

it('shows the stack with --verbose only', async () => {
  const args = ['doctor', '--model', '/no/such/folder'];
  const short = await dsla(args);
  expect(short.code).toBe(1);
  expect(short.err).toMatch(/^dsla: [^\n]*config\.json[^\n]*\n$/);
  const long = await dsla([...args, '--verbose']);
  expect(long.err).toContain('\n    at ');
  expect(long.err).toContain('caused by Error: ENOENT');
});

it('reports backends, as text and as one JSON object', async () => {
  const text = await dsla(['doctor', '--backend', 'reference']);
  expect(text).toMatchObject({ code: 0, err: '' });
  expect(text.out).toContain('ok      reference: float64');
  const json = await dsla(['doctor', '--backend', 'reference', '--json']);
  const { backends, node } = JSON.parse(json.out);
  expect(node).toBe(process.version);
  expect(backends).toEqual([
    {
      name: 'reference',
      works: true,
      description: expect.stringContaining('float64'),
      versions: { '@dsla/reference': expect.stringMatching(/^\d/) },
      obstacles: [],
    },
  ]);
});

it('asks every device of a backend, and explains with --fix what one needs', async () => {
  const { backends } = JSON.parse((await dsla(['doctor', '--backend', 'onnx,reference', '--fix', '--json'])).out);
  expect(backends.map(({ name, device }: { name: string; device?: string }) => [name, device])).toEqual([
    ['onnx', 'cpu'],
    ['onnx', 'cuda'],
    ['reference', undefined],
  ]);
  const [cpu, cuda] = backends;
  expect(cpu).toMatchObject({ works: true });
  expect(cpu).not.toHaveProperty('requirements');
  if (cuda.works) return; // nothing to fix on this machine
  expect(cuda.obstacles[0]).toMatch(/libonnxruntime_providers|libcu|koffi/);
  expect(cuda.requirements).toContainEqual({
    name: 'libcudnn',
    version: expect.any(String),
    install: expect.stringContaining('cudnn'),
  });
  const text = (await dsla(['doctor', '--backend', 'onnx', '--fix'])).out;
  expect(text).toMatch(/missing onnx, cuda: does not open\n(.*\n)+ +It needs:\n +- onnxruntime-node/);
});

it('knows which backend chooses among kernels', async () => {
  expect(await tuningOf('reference', false, {})).toBeUndefined();
  expect(await tuningOf('onnx', true, {})).toBeUndefined();
  // Nothing, or what was chosen on this machine before.
  const chosen = (await tuningOf('webgpu', false, {}))!;
  for (const { kernel, chosen: cut, milliseconds } of chosen) expect(milliseconds, kernel).toHaveProperty([cut]);
  expect(chosen).toBeInstanceOf(Array);
});

it('colours terminals only, and not with NO_COLOR', async () => {
  const args = ['doctor', '--backend', 'reference'];
  const green = '\u001b[32m';
  expect((await dsla(args)).out).not.toContain(green);
  expect((await dsla(args, { terminal: true })).out).toContain(green);
  expect((await dsla(args, { terminal: true, env: { NO_COLOR: '1' } })).out).not.toContain(green);
  expect((await dsla(args, { env: { FORCE_COLOR: '1' } })).out).toContain(green);
});

it('runs as a process', async () => {
  expect(await dslaProcess(['--version'])).toMatchObject({ code: 0, out: (await dsla(['--version'])).out, err: '' });
});
