// Two copies of the package in one process: each works, and a tensor of one is refused by the other.
import * as one from 'one';
import * as two from 'two';
import { report } from './report.cjs';

await report(one);
await report(two);
const t = one.zeros([1, 1, 1, 1]);
try {
  two.attention(t, t, t);
} catch ({ code, message }) {
  console.log(JSON.stringify({ distinct: one.Tensor !== two.Tensor, code, message }));
}
