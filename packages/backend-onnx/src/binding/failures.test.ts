import { DslaError } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { deviceError } from './failures.js';

describe('what ONNX Runtime says', () => {
  it('of memory becomes E_MEMORY, with the bytes wanted and free where they are known', () => {
    const arena = new Error(
      'BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 734003200',
    );
    const known = deviceError(arena, 'layers.3 row 2', 1024);
    expect(known).toMatchObject({ code: 'E_MEMORY', cause: arena, details: { wanted: 734003200, free: 1024 } });
    expect(known.message).toMatch(
      /^layers\.3 row 2: 734003200 bytes of memory for what is computed .*, 1024 bytes are\./,
    );
    const device = deviceError(new Error('CUDA failure 2: out of memory ; GPU=0'), 'layers.3');
    expect(device).toMatchObject({ code: 'E_MEMORY', details: {} });
    expect(device.message).toContain('enough memory for what is computed must be available. Use fewer');
  });

  it('of anything else becomes E_DEVICE with its text, and an error of ours stays', () => {
    expect(deviceError(new Error('CUDA failure 700: an illegal memory access'), 'layers.3')).toMatchObject({
      code: 'E_DEVICE',
      message: expect.stringContaining('layers.3: CUDA failure 700: an illegal memory access'),
    });
    const own = new DslaError('E_DISPOSED', { where: 'x', rule: 'y' });
    expect(deviceError(own, 'layers.3')).toBe(own);
  });
});
