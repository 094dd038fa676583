import { describe, it } from 'vitest';
import { precisionChecks } from '../../verify/device/precision.js';
import { testDevice } from '../support/device.js';

describe('16-bit results on large tensors', () => {
  it.each(precisionChecks())('$name', (check) => check.run(testDevice));
});
