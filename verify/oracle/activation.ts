/** Activations in float64, by their definitions. */

/** The upper tail of the normal distribution, P(X > x), for x >= 0. */
function normalTail(x: number): number {
  const density = Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
  if (x > 5) {
    // Laplace's continued fraction, from its end.
    let fraction = x;
    for (let n = 60; n > 0; n--) fraction = x + n / fraction;
    return density / fraction;
  }
  let term = x;
  let series = x;
  for (let n = 1; n < 120; n++) {
    term *= (x * x) / (2 * n + 1);
    series += term;
  }
  return 0.5 - density * series;
}

const normal = (x: number) => (x < 0 ? normalTail(-x) : 1 - normalTail(x));
const gelu = (x: number) => x * normal(x);
const geluTanh = (x: number) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const silu = (x: number) => x / (1 + Math.exp(-x));
const relu = (x: number) => Math.max(x, 0);

export const activations = { gelu, geluTanh, silu, relu } as const;
