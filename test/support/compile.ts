import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** Where an example is said to lie, so that it finds the package: 'README.md:23' -> docs/README.md_23.ts */
export const pathOf = (place: string): string =>
  join(root, 'docs', `${place.replaceAll(/[^\w.]/g, '_')}.ts`).replaceAll('\\', '/');

/** What the compiler says of modules, by their paths; all in one program. */
export function diagnose(modules: ReadonlyMap<string, string>, own: ts.CompilerOptions = {}): string[] {
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent({ ...config, include: [], files: [] }, ts.sys, root);
  const host = ts.createCompilerHost(options);
  const { fileExists, readFile, getSourceFile } = host;
  host.fileExists = (path) => modules.has(path) || fileExists.call(host, path);
  host.readFile = (path) => modules.get(path) ?? readFile.call(host, path);
  host.getSourceFile = (path, language, ...rest) => {
    const code = modules.get(path);
    if (code !== undefined) return ts.createSourceFile(path, code, language, true);
    return getSourceFile.call(host, path, language, ...rest);
  };
  const program = ts.createProgram([...modules.keys()], { ...options, ...own }, host);
  return [...modules.keys()].flatMap((path) => {
    const source = program.getSourceFile(path);
    const found = [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)];
    return found.map(({ messageText, start = 0 }) => {
      const line = source ? source.getLineAndCharacterOfPosition(start).line + 1 : 0;
      return `${path.slice(dirname(path).length + 1)}, line ${line}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`;
    });
  });
}
