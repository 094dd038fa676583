import { canaryChecks } from './device/canaries.js';
import { describeOnEmulator, emulatorSettings } from './support/onEmulator.js';

describeOnEmulator('canaries', canaryChecks(emulatorSettings));
