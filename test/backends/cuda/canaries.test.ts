import { canaryChecks } from '../../../verify/device/canaries.js';
import { describeOnEmulator } from '../../support/onEmulator.js';

describeOnEmulator('canaries', canaryChecks());
