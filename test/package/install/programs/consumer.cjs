const flashattn = require('flashattn');
const { report } = require('./report.cjs');

report(flashattn);
