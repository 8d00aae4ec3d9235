export { createDetokenizer, createStopScanner, type Detokenizer, type StopScanner } from './detokenize.js';
export type { Drawn } from './draw.js';
export { complete, type Generated, type GenerateOptions, generate, type Usage } from './generate.js';
export { type LoadedModel, type LoadOptions, loadModel, loadNetwork, type TextModel } from './load.js';
export { createModel, type Model, type ModelOptions, type RunInput } from './model.js';
export type { RunOptions } from './run.js';
export {
  argmax,
  createDraws,
  createSampler,
  type Distribution,
  distribution,
  type Sampler,
  type SamplingOptions,
} from './sample.js';
export type { Sequence } from './slots.js';
export { createTokenizer, type Tokenizer, type TokenizerFiles } from './tokenizer.js';
