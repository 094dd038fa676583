import { gridChecks } from './device/grid.js';
import { describeOnEmulator, emulatorSettings } from './support/onEmulator.js';

describeOnEmulator('the grid in float32', gridChecks(emulatorSettings, 'float32'));
