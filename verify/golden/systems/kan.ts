/** Layers of Kolmogorov-Arnold networks. */
import { bSplines, kanLinear, pykanLinear } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { numberOf } from '../file.js';
import { solveTaped } from './taped.js';

export const kanEfficient: Adapter = {
  systems: ['kan_efficient'],
  compute(file, workspace) {
    const order = numberOf(file, 'spline_order');
    const grid = workspace.load(file, 'grid');
    return solveTaped(file, workspace, (input) => ({
      out: kanLinear(input('x'), {
        grid,
        baseWeight: input('base_weight'),
        splineWeight: input('spline_weight'),
        splineScaler: file.has('spline_scaler') ? input('spline_scaler') : undefined,
      }),
      bases: bSplines(input('x'), grid, order),
    }));
  },
};

export const pykan: Adapter = {
  systems: ['kan_pykan'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => ({
      out: pykanLinear(input('x'), {
        grid: workspace.load(file, 'grid'),
        coef: input('coef'),
        scaleBase: input('scale_base'),
        scaleSp: input('scale_sp'),
        mask: file.has('mask') ? workspace.load(file, 'mask') : undefined,
      }),
    })),
};
