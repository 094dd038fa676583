import { canaryChecks } from './device/canaries.js';
import { describeOnEmulator } from './support/onEmulator.js';

describeOnEmulator('canaries', canaryChecks());
