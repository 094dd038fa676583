// What kind of system this is, as far as it decides which addon can be loaded.

export interface SystemDescription {
  /** Such as 'linux-x64': what the addon is looked up for. */
  readonly platform: string;
  /** On Linux. */
  readonly libc?: 'glibc' | 'musl';
  /** The version of glibc, where that is the C library. */
  readonly glibc?: string;
  readonly node: string;
}

interface ReportHeader {
  readonly glibcVersionRuntime?: string;
}

/** Node's report knows the C library. It takes some milliseconds; with the names of network addresses, seconds. */
function readGlibcVersion(): string | undefined {
  if (process.platform !== 'linux') return undefined;
  const report = process.report as typeof process.report & { excludeNetwork?: boolean };
  const { excludeNetwork } = report;
  report.excludeNetwork = true;
  try {
    const { header } = report.getReport() as unknown as { header: ReportHeader };
    return header.glibcVersionRuntime;
  } finally {
    report.excludeNetwork = excludeNetwork ?? false;
  }
}

/** Such as 'linux-x64'. node-gyp-build takes the same environment variables for other platforms than this one. */
export function platformName(): string {
  const { npm_config_platform, npm_config_arch } = process.env;
  return `${npm_config_platform || process.platform}-${npm_config_arch || process.arch}`;
}

export function describeSystem(): SystemDescription {
  const platform = platformName();
  const system = { platform, node: process.versions.node };
  if (!platform.startsWith('linux-')) return system;
  const { LIBC } = process.env;
  const glibc = readGlibcVersion();
  const libc = LIBC === 'musl' || LIBC === 'glibc' ? LIBC : glibc === undefined ? 'musl' : 'glibc';
  return { ...system, libc, ...(libc === 'glibc' && glibc !== undefined && { glibc }) };
}

/** 'linux-x64 with glibc 2.36' */
export function nameSystem({ platform, libc, glibc }: SystemDescription): string {
  return libc === undefined ? platform : `${platform} with ${[libc, glibc].filter(Boolean).join(' ')}`;
}
