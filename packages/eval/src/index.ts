export {
  type BitsOptions,
  type BitsPerByte,
  bitsPerByte,
  type CharacterWindows,
  type TokenWindows,
} from './bits-per-byte.js';
export {
  type MultipleChoice,
  multipleChoice,
  type Question,
  type QuestionOptions,
  readQuestions,
} from './multiple-choice.js';
export { parseRecallFormat, type RecallBucket, type RecallFormat, type RecallOptions, recall } from './recall.js';
export { type EvalOptions, logProbabilities, type ScoreRequest } from './score.js';
export type { Summary } from './summary.js';
