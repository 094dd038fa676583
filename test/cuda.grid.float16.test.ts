import { gridChecks } from './device/grid.js';
import { describeOnEmulator, emulatorSettings } from './support/onEmulator.js';

describeOnEmulator('the grid in float16', gridChecks(emulatorSettings, 'float16'));
