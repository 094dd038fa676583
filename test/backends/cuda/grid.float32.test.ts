import { gridChecks } from '../../../verify/device/grid.js';
import { describeOnEmulator, emulatorSettings } from '../../support/onEmulator.js';

describeOnEmulator('the grid in float32', gridChecks(emulatorSettings, 'float32'));
