export { referenceBackend } from './device.js';
