/** The first Ctrl-C asks training to stop, and the summary follows; the second one quits. */
export function stopOnInterrupt(): AbortController {
  const stop = new AbortController();
  let since = Number.NaN;
  process.on('SIGINT', () => {
    // The terminal tells every program, and npm passes it on besides: what comes at once is one key press.
    if (performance.now() - since > 300) process.exit(130);
    if (!Number.isNaN(since)) return;
    since = performance.now();
    process.stderr.write('\nstopping; Ctrl-C again quits at once\n');
    stop.abort();
  });
  return stop;
}
