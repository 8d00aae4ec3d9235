export { type ChainEvent, type ChainOptions, chain } from './chain.js';
export { type Conversion, type ConversionNote, readConversion, readTuned } from './conversion.js';
export { type Evaluation, evaluate, type LevelResult, type Misfit } from './evaluate.js';
export { foldableRecipe, publishedRecipe, type Recipe, type Stage } from './recipe.js';
export {
  orderAtRandom,
  orderByDepth,
  orderByEntropy,
  orderByKl,
  orderByRecall,
  orderGreedily,
  type SensitivityOptions,
} from './sensitivity.js';
export { openText, partOf, type TextSource, textSource } from './source.js';
export { openStudent, type Student, type StudentOptions } from './student.js';
export { openWindows, type Position, type WindowOptions, type Windows } from './windows.js';
