// A registry that has the packages of this checkout and nothing else, in a thread of its own: checks block theirs.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { basename } from 'node:path';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

/** What the registry says of a package that has these versions. */
function describe(name, versions, host) {
  const entries = versions.map(({ manifest, tarball }) => {
    const bytes = readFileSync(tarball);
    const hash = (algorithm, encoding) => createHash(algorithm).update(bytes).digest(encoding);
    const dist = {
      tarball: `http://${host}/${name}/-/${basename(tarball)}`,
      shasum: hash('sha1', 'hex'),
      integrity: `sha512-${hash('sha512', 'base64')}`,
    };
    return [manifest.version, { ...manifest, dist }];
  });
  return { name, 'dist-tags': { latest: entries[0][0] }, versions: Object.fromEntries(entries) };
}

/** `packages`: what to serve, { manifest, tarball } each, the version that is the latest of its name first. */
async function serve(packages) {
  const server = createServer(({ url, headers: { host } }, response) => {
    const path = decodeURIComponent(url.split('?')[0]).slice(1);
    const file = packages.find(({ tarball, manifest }) => path === `${manifest.name}/-/${basename(tarball)}`);
    const versions = packages.filter(({ manifest }) => manifest.name === path);
    if (file) response.end(readFileSync(file.tarball));
    else if (versions.length > 0)
      response.setHeader('content-type', 'application/json').end(JSON.stringify(describe(path, versions, host)));
    else response.writeHead(404, { 'content-type': 'application/json' }).end('{"error":"not found"}');
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  parentPort.postMessage(server.address().port);
}

/** @returns its address, and what ends it */
export async function startRegistry(packages) {
  const worker = new Worker(new URL(import.meta.url), { workerData: packages });
  const [port] = await once(worker, 'message');
  return { address: `http://127.0.0.1:${port}/`, stop: () => worker.terminate() };
}

if (!isMainThread) await serve(workerData);
