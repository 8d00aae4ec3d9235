import { referenceBackend } from '@dsla/reference';
import { backendConformance } from './index.js';

// Against itself a comparison with the reference shows nothing; everything else does: golden vectors, one pass against steps,
// fold against prefill, ownership, errors, poison. (Here and not in `reference`, which must not depend on its own judge.)
backendConformance({
  name: 'reference',
  open: () => referenceBackend.open(),
  tolerance: { forward: 1e-6, states: 1e-6, same: 1e-6 },
});
