// TypeScript that compiles to CommonJS.
import flashattn = require('flashattn');

const t: flashattn.Tensor<'float32'> = flashattn.tensor([1], [1]);
export = t.size satisfies number;
