/** The groups of checks that have no file of their own. */
import { suite } from '../../../verify/device/suite.js';
import { describeOnEmulator, emulatorSettings } from '../../support/onEmulator.js';

const ELSEWHERE = ['grid', 'properties', 'canaries'];

for (const { name, checks } of suite(emulatorSettings)) if (!ELSEWHERE.includes(name)) describeOnEmulator(name, checks);
