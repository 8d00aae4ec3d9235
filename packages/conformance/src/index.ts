export { type Golden, goldenNames, readGolden } from './golden.js';
export { backendConformance, type ConformanceOptions, type Skip } from './suite.js';
export { float16, float32, type Tolerance } from './tolerance.js';
