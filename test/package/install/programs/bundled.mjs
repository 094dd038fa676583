// To be bundled.
import { attention, status, tensor } from 'flashattn';
import { report } from './report.cjs';

report({ attention, status, tensor }).catch(({ code, message }) => console.log(JSON.stringify({ code, message })));
