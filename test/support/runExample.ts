import * as flashattn from 'flashattn';
import * as inference from 'flashattn/inference';
import * as nn from 'flashattn/nn';
import * as systems from 'flashattn/systems';
import ts from 'typescript';
import { vi } from 'vitest';

/** What a user can import, by the name of the entry point. */
export const entries: Readonly<Record<string, object>> = {
  flashattn,
  'flashattn/inference': inference,
  'flashattn/nn': nn,
  'flashattn/systems': systems,
};

/** Runs a module of TypeScript against the package; returns what it has printed, call by call. */
export function runExample(code: string): unknown[][] {
  const { outputText } = ts.transpileModule(code, {
    compilerOptions: { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022 },
  });
  const log = vi.spyOn(console, 'log').mockImplementation(() => {});
  try {
    new Function('require', 'exports', outputText)((name: string) => entries[name], {});
    return log.mock.calls;
  } finally {
    log.mockRestore();
  }
}
