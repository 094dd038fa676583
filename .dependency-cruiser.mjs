// Who may import whom. `npm run lint` holds it; ARCHITECTURE.md draws it.

/** The folders of lib, from the ground up: each imports only what stands before it. */
const layers = [
  'base', // errors, checks, dtypes: the words that all others speak in
  'masks', // who sees whom, as descriptions
  'blockmask', // a mask compiled for given lengths
  'patterns', // masks by their authors' names
  'kernels', // what a device is asked to do: types alone
  'tensor', // memory with a shape
  'backends', // devices that do it
  'devices', // which backend a name stands for, and why
  'tape', // what operations record, and the way back of gradients
  'ops', // functions on tensors
  'linear', // linear and recurrent attention: a state that is carried along
  'attention', // the operation of the package
  'autograd', // gradients of functions
  'nn', // what training needs around operations: weights in files, tokens, curves
  'inference', // decoding: blocks of the cache, continuous batching, speculation, serving
  'systems', // what is built of it
  'cli', // programs for users
];

/** Where a layer knows less than its place allows. */
const narrower = [
  {
    name: 'masks-know-no-tensors',
    comment: 'Masks describe who sees whom, for any tensor: they can be drawn and tested without a device.',
    from: { path: '^lib/(masks|blockmask|patterns)/' },
    to: { path: '^lib/(?!base/|masks/|blockmask/|patterns/)' },
  },
  {
    name: 'backends-know-kernels-alone',
    comment: 'A backend is memory, streams and kernels; tensors are built on backends and not the other way round.',
    from: { path: '^lib/backends/' },
    to: { path: '^lib/(tensor|patterns)/' },
  },
  {
    name: 'backends-know-not-each-other',
    comment: 'What two backends share stands in backends/shared; each can be taken away alone.',
    from: { path: '^lib/backends/([^/]+)/' },
    to: { path: '^lib/backends/', pathNot: '^lib/backends/($1|shared)/' },
  },
  {
    name: 'shared-knows-no-backend',
    comment: 'What backends share knows none of them.',
    from: { path: '^lib/backends/shared/' },
    to: { path: '^lib/backends/(?!shared/)' },
  },
  {
    name: 'linear-knows-no-attention',
    comment: 'They stand side by side: each can be read without the other.',
    from: { path: '^lib/linear/' },
    to: { path: '^lib/attention/' },
  },
];

const upward = layers.map((layer, i) => ({
  name: `${layer}-knows-what-is-below`,
  comment: `lib/${layer} stands on ${layers.slice(0, i).join(', ') || 'nothing'}: a layer that reached up could not be read, tested or taken away without the ones above.`,
  severity: 'error',
  from: { path: `^lib/${layer}/` },
  to: { path: '^lib/', pathNot: `^lib/(${layers.slice(0, i + 1).join('|')})/` },
}));

const others = [
  {
    name: 'no-circles',
    comment: 'Files in a circle can only be understood, loaded and tested all together.',
    from: {},
    to: { circular: true },
  },
  {
    name: 'layers-have-names',
    comment: 'A new folder of lib takes its place in the list of layers; only the entry point stands beside them.',
    from: { path: '^lib/', pathNot: `^lib/(index\\.ts$|(${layers.join('|')})/)` },
    to: {},
  },
  {
    name: 'the-package-stands-alone',
    comment: 'What is published must not need what is not.',
    from: { path: '^lib/' },
    to: { path: '^(verify|test|bench|examples|scripts|docs)/' },
  },
  {
    name: 'the-package-needs-what-it-declares',
    comment: 'A user has the dependencies of package.json and no development tools.',
    from: { path: '^lib/' },
    to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown'] },
  },
  {
    name: 'the-oracle-shares-nothing',
    comment: 'An oracle that used the code under test would share its faults.',
    from: { path: '^verify/oracle/' },
    to: { pathNot: '^verify/oracle/' },
  },
  {
    name: 'verify-ships-without-tests',
    comment: '`flashattn verify` is published: it needs no test runner and nothing of test/.',
    from: { path: '^verify/' },
    to: { path: '^(test|bench|examples|scripts)/|^node_modules/vitest/' },
  },
  {
    name: 'verify-uses-the-package',
    comment: 'Checks see what users see, `flashattn` itself; of lib they take types alone.',
    from: { path: '^verify/' },
    to: { path: '^lib/', pathNot: '^lib/((nn|systems)/)?index\\.ts$', dependencyTypesNot: ['type-only'] },
  },
  {
    name: 'programs-need-no-tests',
    comment: 'Benchmarks and examples show how the package is used, by a user who has no tests.',
    from: { path: '^(bench|examples)/' },
    to: { path: '^test/' },
  },
  {
    name: 'examples-use-the-package',
    comment: 'An example can be copied: it imports the package and nothing of this repository.',
    from: { path: '^examples/' },
    to: { path: '^(lib|verify|bench|scripts)/', pathNot: '^lib/((nn|systems)/)?index\\.ts$' },
  },
  {
    name: 'resolvable',
    comment:
      'An import that leads nowhere is found here and not when it runs; peers are installed where they are wanted.',
    from: { pathNot: '^bench/peers/' },
    to: { couldNotResolve: true },
  },
];

export default {
  forbidden: [...upward, ...narrower, ...others].map((rule) => ({ severity: 'error', ...rule })),
  options: {
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true, // types too: who needs a type needs the layer
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '^(dist|build|prebuilds)/|^test/package/install/programs/' },
    enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'types', 'node', 'default'] },
  },
};
