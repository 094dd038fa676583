import { gridChecks } from '../../../verify/device/grid.js';
import { describeOnEmulator, emulatorSettings } from '../../support/onEmulator.js';

describeOnEmulator('the grid in bfloat16', gridChecks(emulatorSettings, 'bfloat16'));
