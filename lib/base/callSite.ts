// Which function of the package was called, and from where.
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { packageFolder } from './package.js';

export interface CallSite {
  /** The function of the package that the user's code has called, such as 'matmul' or 'Tensor.slice'. */
  readonly name: string;
  /** The line that called it: file:line:column. */
  readonly place: string;
}

interface Frame {
  readonly name: string;
  readonly file: string;
  readonly place: string;
}

/** More than any call of the package is deep. */
const mostFrames = 100;

const pathOf = (file: string): string => (file.startsWith('file:') ? fileURLToPath(file) : file);

/** '    at Tensor.slice (file:///a/b.ts:1:2)' */
function parse(line: string): Frame | undefined {
  const found = /^\s*at (?:(?:async |new )?(.+?) \()?(.+?)(:\d+:\d+)\)?$/.exec(line);
  if (!found) return undefined;
  const [, name = '', file = '', position = ''] = found;
  const path = pathOf(file);
  return { name: name.replace(/ \[as .*\]$/, ''), file: path, place: path + position };
}

function ownFolders(): readonly string[] {
  const root = packageFolder();
  return root === undefined ? [] : [join(root, 'lib', '/'), join(root, 'dist', '/')];
}

let folders: readonly string[] | undefined;

/** Where the package has been called from. In a bundle, which has the package in the user's own file, the name alone is known. */
export function callSite(): CallSite {
  const own = (folders ??= ownFolders());
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = mostFrames;
  const { stack = '' } = new Error('here');
  Error.stackTraceLimit = stackTraceLimit;
  const frames = stack.split('\n').flatMap((line) => parse(line) ?? []);
  const isOwn = ({ file }: Frame) => own.some((folder) => file.startsWith(folder));
  const caller = frames.findIndex((frame) => !isOwn(frame));
  if (caller <= 0) return { name: frames.at(-1)?.name ?? '', place: frames[0]?.place ?? 'an unknown place' };
  const named = frames.slice(0, caller).findLast(({ name }) => name !== '' && name !== 'Object.<anonymous>');
  return { name: named?.name ?? 'an operation', place: (frames[caller] as Frame).place };
}
