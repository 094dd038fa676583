import { checkFloat32, checkInteger, checkNumber, checkOptions, checkWord, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import {
  crossEntropyBackward as backwardOperation,
  crossEntropy as crossEntropyOperation,
  type LossProblem,
  type LossReduction,
  lossReductions,
} from '../kernels/crossEntropy.js';
import type { Backend } from '../kernels/device.js';
import type { Rows } from '../kernels/rowsByIndex.js';
import { record } from '../tape/tape.js';
import { checkDisjoint } from '../tensor/overlap.js';
import { elementCount, sameShape } from '../tensor/shape.js';
import { allocating, checkIndices, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkWithin, type Indices, withContiguous } from './embedding.js';

/** Kernels count rows and classes in 32 bits, and in steps of several. */
const most = 2 ** 31 - 2 ** 10;

export interface CrossEntropyOptions {
  /** The target of rows that do not count: their loss and gradient are 0 and nothing of them is read. Default -100. */
  readonly ignoreIndex?: number;
  /** s: how much of the target's weight all classes share, from 0 to 1 (Szegedy et al. 2016). Default 0. */
  readonly labelSmoothing?: number;
  /** z: weighs lse^2, which keeps logits from drifting (Chowdhery et al. 2022, "PaLM": 1e-4). Default 0. */
  readonly zLoss?: number;
  /** 'mean' is over the rows that are not ignored, as in PyTorch: NaN where there are none. Default 'mean'. */
  readonly reduction?: LossReduction;
}

function checkProblem(logits: Tensor, targets: Indices, options: CrossEntropyOptions): LossProblem {
  checkOptions(options, ['ignoreIndex', 'labelSmoothing', 'zLoss', 'reduction']);
  const { ignoreIndex = -100, labelSmoothing = 0, zLoss = 0, reduction = 'mean' } = options;
  checkInteger(ignoreIndex, 'ignoreIndex', -(2 ** 31), 2 ** 31 - 1);
  checkNumber(labelSmoothing, 'labelSmoothing', 0, 1);
  checkFloat32(zLoss, 'zLoss');
  if (zLoss < 0) throw mustBe('zLoss', zLoss, 'at least 0');
  checkWord(reduction, 'reduction', lossReductions);
  const { shape } = logits;
  const axes = shape.length - 1;
  const classes = shape[axes];
  if (axes < 0) throw shapeError('logits has shape []; it must be [..., classes]');
  if (!sameShape(targets.shape, shape.slice(0, axes)))
    throw shapeError(
      `targets has shape ${show(targets.shape)}; it must be ${show(shape.slice(0, axes))}, that of logits without classes`,
    );
  const rows = targets.size;
  if (rows > most || classes > most)
    throw shapeError(`logits has shape ${show(shape)}; there may be at most 2^31 - 2^10 rows and classes`);
  return { rows, classes, ignoreIndex, labelSmoothing, zLoss, reduction };
}

/** Whether one stride tells where the rows are, and their classes lie side by side. */
function hasRows(t: Tensor): boolean {
  const { shape, strides } = t;
  return t.isContiguous || (shape.length === 2 && (strides[1] === 1 || shape[1] === 1));
}

/** Whether every element of these rows has a place of its own, so that they can be written. */
const hasOwnRows = (t: Tensor): boolean =>
  hasRows(t) && (t.shape.length !== 2 || t.shape[0] <= 1 || t.strides[0] >= t.shape[1]);

function rowsOf(t: Tensor, argument: string, backend: Backend): Rows {
  const { buffer, offset } = t.operand(argument, backend);
  const { shape, strides, dtype } = t;
  return { buffer, offset, dtype, rowStride: shape.length === 2 ? strides[0] : shape[shape.length - 1] };
}

/** @internal What a loss leaves for its gradient. */
export interface SavedLoss {
  /** [2, ...rows]: the logarithm of the sum of e^logit, and what its rounding cuts off; 0 where ignored. */
  readonly lse: Tensor<'float32', Shape>;
  /** []: how many rows are not ignored; there is none for 'none'. */
  readonly count: Tensor<'float32', Shape> | undefined;
}

/** @internal */
export interface CrossEntropyResult extends SavedLoss {
  readonly loss: Tensor<'float32', Shape>;
}

/** @internal As `crossEntropy`, with what the gradient needs. */
export function crossEntropyForward(
  logits: Tensor<FloatDType, Shape>,
  targets: Indices,
  options: CrossEntropyOptions = {},
): CrossEntropyResult {
  checkTensor(logits, 'logits');
  checkIndices(targets, 'targets');
  const { backend } = logits;
  logits.operand('logits', backend);
  targets.operand('targets', backend);
  const problem = checkProblem(logits, targets, options);
  const { classes, ignoreIndex, reduction } = problem;
  checkWithin(targets, 'targets', classes, `a class, below ${classes}, or ignoreIndex, ${ignoreIndex}`, ignoreIndex);
  return withContiguous(logits, hasRows(logits), (rows) =>
    withContiguous(targets, targets.isContiguous, (flatTargets) =>
      allocating(backend, (allocate) => {
        const losses = allocate(targets.shape, 'float32');
        const lse = allocate([2, ...targets.shape], 'float32');
        const reduces = reduction !== 'none';
        const loss = reduces ? allocate([], 'float32') : losses;
        const count = reduces ? allocate([], 'float32') : undefined;
        backend.launch(crossEntropyOperation, {
          problem,
          logits: rowsOf(rows, 'logits', backend),
          targets: flatTargets.flat('targets', backend),
          losses: losses.flat('losses', backend),
          lse: lse.flat('lse', backend),
          result: reduces ? loss.flat('loss', backend) : undefined,
          count: count?.flat('count', backend),
        });
        if (reduces) losses.dispose();
        return { loss, lse, count };
      }),
    ),
  );
}

/**
 * The cross entropy of logits x and one target class t each, as PyTorch's `cross_entropy`:
 *
 *   loss = (1 - s) (lse - x[t]) + s (lse - mean(x)) + z lse^2,   lse = log sum_j e^x[j]
 *
 * computed in float32 without an array of probabilities. A target that is no class is refused where the host has written
 * the targets; where an operation has made them, the loss of its row is NaN.
 *
 * @param logits [..., classes]
 * @param targets [...], int32: classes, or `ignoreIndex`
 * @returns float32: [], or [...] for the reduction 'none'
 * @throws ERR_OPTION naming the target and its place, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function crossEntropy(
  logits: Tensor<FloatDType, Shape>,
  targets: Indices,
  options: CrossEntropyOptions & { readonly reduction: 'none' },
): Tensor<'float32', Shape>;
export function crossEntropy(
  logits: Tensor<FloatDType, Shape>,
  targets: Indices,
  options?: CrossEntropyOptions & { readonly reduction?: 'mean' | 'sum' },
): Tensor<'float32', readonly []>;
export function crossEntropy(
  logits: Tensor<FloatDType, Shape>,
  targets: Indices,
  options: CrossEntropyOptions = {},
): Tensor<'float32', Shape> {
  const { loss, lse, count } = crossEntropyForward(logits, targets, options);
  const own = { ...options };
  const kept = count ? [logits, targets, lse, count] : [logits, targets, lse];
  record('crossEntropy', [logits], [loss], kept, ([dLoss], saved, _needed, frees) => {
    if (!dLoss) return [];
    const [x, t, l, n] = saved as readonly [Tensor, Indices, Tensor<'float32'>, Tensor<'float32'> | undefined];
    // Logits that nobody has any more become their own gradient.
    const into = frees && x.ownsStorage && hasOwnRows(x) ? x : undefined;
    const inputs = { logits: x, targets: t, lse: l, count: n, dLoss: dLoss as Tensor<'float32'>, into };
    const result = crossEntropyBackward(inputs, own);
    return [result === x ? x.detach() : result];
  });
  lse.dispose();
  count?.dispose();
  return loss;
}

/** @internal */
export interface CrossEntropyBackwardInputs<D extends FloatDType> extends SavedLoss {
  readonly logits: Tensor<D, Shape>;
  readonly targets: Indices;
  /** [], or [...rows] for 'none'. */
  readonly dLoss: Tensor<'float32', Shape>;
  /** Of the shape and dtype of the logits; may be these themselves. */
  readonly into?: Tensor<D, Shape> | undefined;
}

function checkInto(into: Tensor, logits: Tensor): void {
  if (into.dtype !== logits.dtype)
    throw new FlashAttnError('ERR_DTYPE', `into is ${into.dtype} and logits is ${logits.dtype}; they must be the same`);
  if (!sameShape(into.shape, logits.shape))
    throw shapeError(`into has shape ${show(into.shape)}; it must be ${show(logits.shape)}, that of logits`);
  if (!hasOwnRows(into))
    throw shapeError(
      `into has strides ${show(into.strides)}; its classes must be contiguous, each row in a place of its own`,
    );
  const [a, b] = [into.operand('into', logits.backend), logits.operand('logits', logits.backend)];
  const isInPlace = a.buffer.address === b.buffer.address && a.offset === b.offset;
  if (!(isInPlace && sameShape(into.strides, logits.strides))) checkDisjoint({ logits }, { into });
}

/**
 * The gradient of `crossEntropy`: dLogits = dLoss (softmax (1 + 2 z lse) - (1 - s) onehot - s / classes), of which 'mean'
 * has as much as there are counted rows. `dLoss` and `count` are read on the device. With `into: logits` there is never a
 * second array of their size.
 *
 * @internal
 * @param options those of the loss
 * @returns of the shape and dtype of the logits, or `into`
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function crossEntropyBackward<D extends FloatDType>(
  inputs: CrossEntropyBackwardInputs<D>,
  options: CrossEntropyOptions = {},
): Tensor<D, Shape> {
  const { logits, targets, lse, count, dLoss, into } = inputs;
  for (const [name, t] of Object.entries({ logits, lse, dLoss })) checkTensor(t, name);
  checkIndices(targets, 'targets');
  const problem = checkProblem(logits, targets, options);
  const { backend } = logits;
  const reduces = problem.reduction !== 'none';
  if (problem.reduction === 'mean' && count === undefined)
    throw optionError("count is undefined; the reduction 'mean' needs that of the forward pass");
  const dLossShape = reduces ? [] : targets.shape;
  if (dLoss.dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `dLoss is ${dLoss.dtype}; it must be float32`);
  if (!sameShape(dLoss.shape, dLossShape))
    throw shapeError(`dLoss has shape ${show(dLoss.shape)}; it must be ${show(dLossShape)}`);
  if (lse.size !== 2 * elementCount(targets.shape))
    throw shapeError(`lse has shape ${show(lse.shape)}; it must be that of the forward pass`);
  if (into !== undefined) {
    checkTensor(into, 'into');
    checkInto(into, logits);
    checkDisjoint({ targets, lse, dLoss, count }, { into });
  }
  const hasStride = dLoss.isContiguous || dLoss.shape.length === 1;
  return withContiguous(logits, hasRows(logits), (rows) =>
    withContiguous(targets, targets.isContiguous, (flatTargets) =>
      withContiguous(dLoss, hasStride, (gradient) =>
        allocating(backend, (allocate) => {
          const result = into ?? (allocate(logits.shape, logits.dtype) as Tensor<D, Shape>);
          backend.launch(backwardOperation, {
            problem,
            logits: rowsOf(rows as Tensor, 'logits', backend),
            targets: flatTargets.flat('targets', backend),
            lse: lse.flat('lse', backend),
            count: count?.flat('count', backend),
            dLoss: {
              ...gradient.operand('dLoss', backend),
              dtype: 'float32',
              rowStride: reduces ? 0 : gradient.shape.length === 1 ? gradient.strides[0] : 1,
            },
            dLogits: rowsOf(result as Tensor, 'into', backend),
          });
          into?.written();
          return result;
        }),
      ),
    ),
  );
}
