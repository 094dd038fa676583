// Steps of training in jax-js on its WebAssembly backend, forward, backward and AdamW compiled as a whole. Needs Node.js 24.
// serve.mjs says what it is asked.
import { loadJax } from '../load.mjs';
import { adamW, normEpsilon, readWeights, serveTraining } from './serve.mjs';

let jax;

async function start() {
  const { threads, ...loaded } = await loadJax();
  ({ jax } = loaded);
  return threads;
}

/** A function takes possession of what it is given: .ref gives a share of it. */
function lossOf(parameters, tokens, targets, { layers, heads, width, context, vocabulary }) {
  const { nn, numpy } = jax;
  const size = tokens.shape[0] / context;
  const p = (name) => parameters[name].ref;
  const norm = (x, name) =>
    nn
      .standardize(x, -1, { epsilon: normEpsilon })
      .mul(p(`${name}.weight`))
      .add(p(`${name}.bias`));
  const linear = (x, name) => numpy.matmul(x, p(`${name}.weight`).transpose()).add(p(`${name}.bias`));

  const attend = (x, name) => {
    const all = linear(x, `${name}.qkv`).reshape([size, context, 3 * heads, width / heads]);
    const [q, k, v] = numpy.split(all, 3, 2);
    const out = nn.dotProductAttention(q, k, v, { isCausal: true });
    return linear(out.reshape([size * context, width]), `${name}.out`);
  };
  const mlp = (x, name) => linear(nn.gelu(linear(x, `${name}.up`), { approximate: true }), `${name}.down`);

  const embedded = numpy.matmul(nn.oneHot(tokens, vocabulary), p('tokens.weight'));
  let x = embedded
    .reshape([size, context, width])
    .add(p('positions.weight'))
    .reshape([size * context, width]);
  for (let i = 0; i < layers; i++) {
    x = x.ref.add(attend(norm(x, `blocks.${i}.norm1`), `blocks.${i}.attention`));
    x = x.ref.add(mlp(norm(x, `blocks.${i}.norm2`), `blocks.${i}.mlp`));
  }
  const logits = numpy.matmul(norm(x, 'norm'), p('tokens.weight').transpose());
  jax.tree.dispose(parameters);
  return nn
    .logSoftmax(logits, -1)
    .mul(nn.oneHot(targets, vocabulary))
    .sum()
    .mul(-1 / (size * context));
}

/** Of one tensor, with what each moment is to be multiplied by so early. */
function update(parameter, mean, square, gradient, correction1, correction2) {
  const { learningRate, beta1, beta2, epsilon, weightDecay } = adamW;
  const { numpy } = jax;
  const nextMean = mean.mul(beta1).add(gradient.ref.mul(1 - beta1));
  const nextSquare = square.mul(beta2).add(numpy.square(gradient).mul(1 - beta2));
  const root = numpy.sqrt(nextSquare.ref.mul(correction2)).add(epsilon);
  const step = nextMean.ref.mul(correction1).div(root).mul(learningRate);
  return [parameter.mul(1 - learningRate * weightDecay).sub(step), nextMean, nextSquare];
}

function prepare({ model, weights, batch }) {
  const { jit, numpy, tree, valueAndGrad } = jax;
  const tensors = readWeights(weights);
  const names = tensors.map(([name]) => name);
  const byName = (of) => Object.fromEntries(tensors.map(([name, shape, values]) => [name, of(shape, values)]));
  let parameters = byName((shape, values) => numpy.array(values).reshape(shape));
  let means = byName((shape) => numpy.zeros(shape));
  let squares = byName((shape) => numpy.zeros(shape));
  const integers = (list) => numpy.array(Int32Array.from(list), { dtype: numpy.int32 });
  const [tokens, targets] = [integers(batch.ids), integers(batch.targets)];

  const compiled = jit((parameters, means, squares, tokens, targets, correction1, correction2) => {
    const f = (parameters) => lossOf(parameters, tokens, targets, model);
    const [loss, gradients] = valueAndGrad(f)(tree.ref(parameters));
    const next = [{}, {}, {}];
    for (const name of names) {
      const own = [parameters, means, squares, gradients].map((tensors) => tensors[name]);
      const made = update(...own, correction1.ref, correction2.ref);
      for (const [i, tensor] of made.entries()) next[i][name] = tensor;
    }
    correction1.dispose();
    correction2.dispose();
    return [loss, ...next];
  });

  let count = 0;
  return {
    step() {
      count++;
      const corrections = [adamW.beta1, adamW.beta2].map((beta) =>
        numpy.array(Float32Array.of(1 / (1 - beta ** count))),
      );
      let loss;
      [loss, parameters, means, squares] = compiled(
        parameters,
        means,
        squares,
        tokens.ref,
        targets.ref,
        ...corrections,
      );
      return async () => (await loss.data())[0];
    },
    async settle() {
      await jax.blockUntilReady([parameters, means, squares]);
    },
    dispose() {
      tree.dispose([parameters, means, squares, tokens, targets]);
      compiled.dispose?.();
    },
  };
}

serveTraining(start, prepare);
