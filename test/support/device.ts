export { testDevice } from '../../verify/cases/device.js';
