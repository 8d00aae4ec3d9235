export { fromBfloat16, toBfloat16 } from './bfloat16.js';
export { type Checkpoint, type OpenCheckpointOptions, openCheckpoint } from './checkpoint.js';
export type { FloatOptions } from './floats.js';
export type { TensorInfo } from './header.js';
export type { FileType } from './storage.js';
