// Steps of training in TensorFlow.js on its WebAssembly backend, with SIMD: variables, its gradients, AdamW of its
// operations. serve.mjs says what it is asked.
import { causalMask, loadTensorFlow } from '../load.mjs';
import { adamW, normEpsilon, readWeights, serveTraining } from './serve.mjs';

let tf;

async function start(wanted) {
  const { threads, ...loaded } = await loadTensorFlow(wanted);
  ({ tf } = loaded);
  return threads;
}

/**
 * The product of two plain matrices. Only such, neither to be transposed, run on its fast kernels, and its own gradients of
 * a product ask for transposed ones: these here transpose first.
 */
const product = (a, b) =>
  tf.customGrad((a, b, save) => {
    save([a, b]);
    const gradFunc = (gradient, [a, b]) => [tf.matMul(gradient, b.transpose()), tf.matMul(a.transpose(), gradient)];
    return { value: tf.matMul(a, b), gradFunc };
  })(a, b);

function lossOf(p, tokens, targets, mask, { layers, heads, width, context, vocabulary }) {
  const dim = width / heads;
  const size = tokens.shape[0] / context;
  const norm = (x, name) => {
    const { mean, variance } = tf.moments(x, -1, true);
    const normal = x.sub(mean).mul(variance.add(normEpsilon).rsqrt());
    return normal.mul(p[`${name}.weight`]).add(p[`${name}.bias`]);
  };
  const linear = (x, name) => product(x, p[`${name}.weight`].transpose()).add(p[`${name}.bias`]);

  const attend = (x, name) => {
    // [3, size * heads, context, dim], head by head
    const all = linear(x, `${name}.qkv`).reshape([size, context, 3, heads, dim]).transpose([2, 0, 3, 1, 4]);
    const parts = tf.unstack(all.reshape([3 * size * heads, context, dim]));
    const each = Array.from({ length: size * heads }, (_, i) => {
      const [q, k, v] = [0, 1, 2].map((part) => parts[part * size * heads + i]);
      const scores = product(q.mul(1 / Math.sqrt(dim)), k.transpose()).add(mask);
      return product(tf.softmax(scores), v);
    });
    const out = tf.stack(each).reshape([size, heads, context, dim]).transpose([0, 2, 1, 3]);
    return linear(out.reshape([size * context, width]), `${name}.out`);
  };
  const gelu = (x) => {
    const inner = x.add(x.mul(x).mul(x).mul(0.044715)).mul(Math.sqrt(2 / Math.PI));
    return x.mul(0.5).mul(tf.tanh(inner).add(1));
  };
  const mlp = (x, name) => linear(gelu(linear(x, `${name}.up`)), `${name}.down`);

  const embedded = product(tf.oneHot(tokens, vocabulary), p['tokens.weight']);
  let x = embedded
    .reshape([size, context, width])
    .add(p['positions.weight'])
    .reshape([size * context, width]);
  for (let i = 0; i < layers; i++) {
    x = x.add(attend(norm(x, `blocks.${i}.norm1`), `blocks.${i}.attention`));
    x = x.add(mlp(norm(x, `blocks.${i}.norm2`), `blocks.${i}.mlp`));
  }
  const logits = product(norm(x, 'norm'), p['tokens.weight'].transpose());
  return tf
    .logSoftmax(logits)
    .mul(tf.oneHot(targets, vocabulary))
    .sum()
    .mul(-1 / (size * context));
}

function prepare({ model, weights, batch }) {
  const { learningRate, beta1, beta2, epsilon, weightDecay } = adamW;
  const tensors = readWeights(weights);
  const own = tensors.map(([, shape, values]) => ({
    parameter: tf.variable(tf.tensor(values, shape)),
    mean: tf.variable(tf.zeros(shape)),
    square: tf.variable(tf.zeros(shape)),
  }));
  const [tokens, targets] = [batch.ids, batch.targets].map((list) => tf.tensor1d(list, 'int32'));
  const mask = tf.tidy(() => causalMask(tf, model.context, model.context));
  const names = tensors.map(([name]) => name);
  const f = (...parameters) => {
    const p = Object.fromEntries(names.map((name, i) => [name, parameters[i]]));
    return lossOf(p, tokens, targets, mask, model);
  };
  const valueAndGrads = tf.valueAndGrads(f);

  let count = 0;
  return {
    step() {
      count++;
      const [correction1, correction2] = [beta1, beta2].map((beta) => 1 / (1 - beta ** count));
      const loss = tf.tidy(() => {
        const { value, grads } = valueAndGrads(own.map(({ parameter }) => parameter));
        for (const [i, { parameter, mean, square }] of own.entries()) {
          mean.assign(mean.mul(beta1).add(grads[i].mul(1 - beta1)));
          square.assign(square.mul(beta2).add(grads[i].square().mul(1 - beta2)));
          const root = square.mul(correction2).sqrt().add(epsilon);
          const step = mean.mul(correction1).div(root).mul(learningRate);
          parameter.assign(parameter.mul(1 - learningRate * weightDecay).sub(step));
        }
        return value;
      });
      return async () => {
        const [value] = await loss.data();
        loss.dispose();
        return value;
      };
    },
    async settle() {
      await own[0].parameter.data();
    },
    dispose() {
      for (const { parameter, mean, square } of own) tf.dispose([parameter, mean, square]);
      tf.dispose([tokens, targets, mask]);
    },
  };
}

serveTraining(start, prepare);
