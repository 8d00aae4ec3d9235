// The package graph of ARCHITECTURE.md. An edge that is not listed here is a decision to be made, not an import to be added.
const edges = {
  spec: [],
  reference: ['spec'],
  conformance: ['spec', 'reference'],
  models: ['spec'],
  weights: ['spec'],
  runtime: ['spec', 'models', 'weights'],
  eval: ['spec', 'runtime'],
  policy: ['spec'],
  distill: ['spec', 'models', 'weights', 'policy', 'runtime'],
  'backend-onnx': ['spec'],
  'backend-tfjs': ['spec'],
  'backend-webgpu': ['spec'],
};

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    { name: 'no-cycles', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'no-orphans',
      severity: 'error',
      from: { orphan: true, pathNot: '(\\.test|\\.bench|/src/index)\\.ts$' },
      to: {},
    },
    {
      name: 'not-to-app',
      severity: 'error',
      from: { path: '^packages/' },
      to: { path: '^apps/' },
    },
    ...Object.entries(edges).map(([name, allowed]) => ({
      name: `edges-of-${name}`,
      severity: 'error',
      comment: `@dsla/${name} may import: ${allowed.join(', ') || 'nothing'}`,
      // Tests and benchmarks may import what their package's devDependencies name.
      from: { path: `^packages/${name}/src/`, pathNot: '\\.(test|bench)\\.ts$' },
      to: { path: '^packages/', pathNot: `^packages/(${[name, ...allowed].join('|')})/` },
    })),
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '/dist/' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: {
      conditionNames: ['@dsla/source', 'import', 'node', 'default'],
      exportsFields: ['exports'],
    },
  },
};
