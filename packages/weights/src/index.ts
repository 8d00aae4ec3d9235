export { fromBfloat16, toBfloat16 } from './bfloat16.js';
export { type Checkpoint, type OpenCheckpointOptions, openCheckpoint } from './checkpoint.js';
export type { FloatOptions } from './floats.js';
export type { TensorInfo } from './header.js';
export type { TensorPlan } from './layout.js';
export type { Values } from './part.js';
export type { FileType } from './storage.js';
export {
  type CheckpointWriterOptions,
  checkpointWriter,
  type SafetensorsWriter,
  safetensorsWriter,
  type WriterOptions,
} from './writer.js';
