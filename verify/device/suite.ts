/** Everything that a device has to pass, in groups. */
import { canaryChecks } from './canaries.js';
import type { Group, Settings } from './check.js';
import { determinismChecks } from './determinism.js';
import { gridChecks } from './grid.js';
import { maskChecks } from './masks.js';
import { emptyChecks, lengthChecks, numberChecks, occupancyChecks } from './numbers.js';
import { operationChecks } from './operations.js';
import { precisionChecks } from './precision.js';
import { productChecks } from './products.js';
import { maskPropertyChecks, propertyChecks } from './property.js';
import { rangeChecks } from './range.js';
import { scaleChecks } from './scale.js';
import { sumChecks } from './sums.js';

export function suite(settings: Settings): Group[] {
  const groups: Group[] = [
    { name: 'grid', checks: gridChecks(settings) },
    { name: 'lengths', checks: [...lengthChecks(settings), ...occupancyChecks(settings)] },
    { name: 'nothing', checks: emptyChecks() },
    { name: 'numbers', checks: numberChecks(settings) },
    { name: 'range', checks: rangeChecks() },
    { name: 'sums', checks: sumChecks(settings) },
    { name: 'precision', checks: precisionChecks() },
    { name: 'scale', checks: scaleChecks(settings) },
    { name: 'masks', checks: maskChecks() },
    { name: 'canaries', checks: canaryChecks() },
    { name: 'operations', checks: operationChecks() },
    { name: 'products', checks: productChecks(settings) },
    { name: 'properties', checks: [...propertyChecks(settings), ...maskPropertyChecks(settings)] },
    { name: 'determinism', checks: determinismChecks(settings) },
  ];
  return groups.filter(({ checks }) => checks.length > 0);
}
