import { describe, it } from 'vitest';
import { temporaryFolder } from '../support/folder.js';
import { killWhileSaving } from './killed.js';

const at = temporaryFolder();

describe('a program that is killed while it saves', () => {
  it('leaves a whole file, 20 times', () => killWhileSaving(20, at));
});
