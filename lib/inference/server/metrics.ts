// What Prometheus reads. https://prometheus.io/docs/instrumenting/exposition_formats/
type Labels = Readonly<Record<string, string>>;

const prefix = 'flashattn_';

const labelText = (labels: Labels) => {
  const parts = Object.entries(labels).map(([name, value]) => `${name}="${value.replaceAll(/["\\\n]/g, '_')}"`);
  return parts.length > 0 ? `{${parts.join(',')}}` : '';
};

const heading = (name: string, type: string, help: string) => `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`;

class Counter {
  readonly #counts = new Map<string, number>();

  constructor(
    readonly name: string,
    readonly help: string,
  ) {}

  add(amount: number, labels: Labels = {}): void {
    const key = labelText(labels);
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + amount);
  }

  toString(): string {
    const name = prefix + this.name;
    const lines = [...this.#counts].map(([labels, count]) => `${name}${labels} ${count}\n`);
    return heading(name, 'counter', this.help) + lines.join('');
  }
}

class Histogram {
  readonly #counts: number[];
  #sum = 0;

  constructor(
    readonly name: string,
    readonly help: string,
    readonly edges: readonly number[],
  ) {
    this.#counts = new Array(edges.length + 1).fill(0);
  }

  observe(value: number): void {
    const at = this.edges.findIndex((edge) => value <= edge);
    this.#counts[at < 0 ? this.edges.length : at]++;
    this.#sum += value;
  }

  toString(): string {
    const name = prefix + this.name;
    let count = 0;
    const buckets = this.#counts.map((own, at) => {
      count += own;
      return `${name}_bucket{le="${this.edges[at] ?? '+Inf'}"} ${count}\n`;
    });
    return `${heading(name, 'histogram', this.help)}${buckets.join('')}${name}_sum ${this.#sum}\n${name}_count ${count}\n`;
  }
}

/** Numbers in objects, by the path to them. */
function numbersIn(stats: object, path = 'engine'): [name: string, value: number][] {
  return Object.entries(stats).flatMap(([key, value]: [string, unknown]) => {
    const name = `${path}_${key.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`).replaceAll(/[^a-z0-9_]/g, '_')}`;
    if (typeof value === 'number') return [[name, value]];
    return value !== null && typeof value === 'object' ? numbersIn(value, name) : [];
  });
}

const gauge = (name: string, value: number, help: string) =>
  `${heading(prefix + name, 'gauge', help)}${prefix}${name} ${value}\n`;

const seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
const shortSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export class ServerMetrics {
  readonly requests = new Counter('requests_total', 'Requests that have been answered, by route and status.');
  readonly promptTokens = new Counter('prompt_tokens_total', 'Tokens of prompts.');
  readonly generatedTokens = new Counter('generated_tokens_total', 'Tokens that have been generated.');
  readonly cancelled = new Counter('cancelled_total', 'Requests that ended early, by reason.');
  readonly duration = new Histogram('request_seconds', 'From a request to the end of its answer.', seconds);
  readonly firstToken = new Histogram('first_token_seconds', 'From a request to its first token.', seconds);
  readonly nextToken = new Histogram('token_seconds', 'From one token of a request to the next.', shortSeconds);

  /** @param active requests that are being answered */
  text(active: number, stats: object | undefined): string {
    const own = [this.requests, this.promptTokens, this.generatedTokens, this.cancelled];
    const times = [this.duration, this.firstToken, this.nextToken];
    const gauges = [
      gauge('requests_active', active, 'Requests that are being answered.'),
      gauge('process_resident_bytes', process.memoryUsage.rss(), 'Memory of the process.'),
      ...(stats ? numbersIn(stats) : []).map(([name, value]) => gauge(name, value, 'A number of the engine.')),
    ];
    return [...own, ...times, ...gauges].join('');
  }
}
