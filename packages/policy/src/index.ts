export { type Estimate, estimate } from './estimate.js';
export { checkLevel, layersAt, levelAt, notableLevels } from './levels.js';
export { type Evidence, type LayerOrder, orderBy, parseOrder } from './order.js';
export { highestLevel, lossBound, parseQuality, type QualityEntry, type QualityTable } from './quality.js';
