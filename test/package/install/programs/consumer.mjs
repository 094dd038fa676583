// What an installed package is tried with: prints the device, why not a better one, and a result that is known.
import { attention, status, tensor } from 'flashattn';
import { report } from './report.cjs';

await report({ attention, status, tensor });
