import { gridChecks } from '../../../verify/device/grid.js';
import { describeOnEmulator, emulatorSettings } from '../../support/onEmulator.js';

describeOnEmulator('the grid in float16', gridChecks(emulatorSettings, 'float16'));
