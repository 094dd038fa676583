// One forward pass that takes several threads, on the device that is named. The mean of ones is 1.
import { attention, tensor } from 'flashattn';

const device = process.argv[2];
const x = tensor(new Float32Array(512 * 4 * 40).fill(1), [1, 512, 4, 40], { device });
const { out } = attention(x, x, x, { causal: true });
const values = await out.data();
console.log(JSON.stringify({ used: out.device, out: values.at(-1) }));
