import { maskPropertyChecks, propertyChecks } from '../../../verify/device/property.js';
import { describeOnEmulator, emulatorSettings } from '../../support/onEmulator.js';

describeOnEmulator('random problems', propertyChecks(emulatorSettings));
describeOnEmulator('random masks', maskPropertyChecks(emulatorSettings));
