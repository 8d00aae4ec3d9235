export { tfjsBackend } from './device.js';
