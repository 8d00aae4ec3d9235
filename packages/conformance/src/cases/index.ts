import type { Case } from '../case.js';
import { draw } from './draw.js';
import { dual } from './dual.js';
import { errors } from './errors.js';
import { golden } from './golden.js';
import { halfBlocks } from './half-blocks.js';
import { nodes } from './nodes.js';
import { ownership } from './ownership.js';
import { poison } from './poison.js';
import { state } from './state.js';
import { steps } from './steps.js';
import { swap } from './swap.js';

/** The suite. */
export const cases: readonly Case[] = [
  ...nodes,
  ...dual,
  ...golden,
  ...halfBlocks,
  ...steps,
  ...draw,
  ...state,
  ...swap,
  ...ownership,
  ...errors,
  ...poison,
];
