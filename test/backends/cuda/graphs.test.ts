/** CUDA graphs: what a plan has captured, and what the addon can record. */
import { describe, expect, it } from 'vitest';
import { emulatorControls } from '../../../lib/devices/registry.js';
import { plan, setStream, tensor } from '../../../lib/index.js';
import { hasEmulator, loadEmulatedAddon, onEmulator } from '../../support/emulator.js';

const device = 'emulator' as 'cuda'; // not among the public names
const range = (n: number) => Float32Array.from({ length: n }, (_, i) => i);

describe.skipIf(!hasEmulator)(onEmulator('graphs'), () => {
  const make = () => tensor(range(64), [1, 8, 1, 8], { device });

  it('hold the kernels of a forward and backward pass', () => {
    const emulator = emulatorControls();
    if (!emulator) throw new Error('no emulator');
    using q = make();
    using planned = plan({ q: [1, 8, 1, 8], device, backward: true });
    const { launches: start } = emulator.statistics();
    using graph = planned.capture(q, q, q, q);
    const { launches: once } = emulator.statistics();
    graph.replay();
    graph.replay();
    const { launches: thrice } = emulator.statistics();
    expect(once - start).toBeGreaterThan(2); // the run before; what is kept does not run
    expect(thrice - once).toBe(2 * (once - start));
  });

  it('are replayed on whatever stream is in use, and recorded on their own', async () => {
    const emulator = emulatorControls();
    if (!emulator) throw new Error('no emulator');
    using q = make();
    using planned = plan({ q: [1, 8, 1, 8], device });
    const expected = planned.run(q, q, q).out.dataSync();
    for (const stream of [0n, BigInt(emulator.createStream()), undefined]) {
      setStream(device, stream);
      using graph = planned.capture(q, q, q);
      const { out } = graph.replay();
      expect(await out.data()).toEqual(expected);
    }
  });

  it('hold launches alone: recording anything else throws and leaves the device as it was', () => {
    const { Context } = loadEmulatedAddon();
    const context = new Context(0);
    const pointer = context.allocate(64);
    const recording = 'launches are being recorded';
    expect(() => context.record(() => context.allocate(4))).toThrow(recording);
    expect(() => context.record(() => context.write(pointer, new Uint8Array(4)))).toThrow(recording);
    expect(() => context.record(() => context.readSync(pointer, new Uint8Array(4)))).toThrow(recording);
    expect(() => context.record(() => context.setStream(undefined))).toThrow(recording);
    expect(() => context.record(() => context.record(() => {}))).toThrow(recording);
    expect(() =>
      context.record(() => {
        throw new RangeError('its own');
      }),
    ).toThrow(new RangeError('its own'));
    const freed = context.record(() => context.free(pointer)); // what disposes of tensors cannot fail
    expect(freed).toBe(0); // no number is left of those that failed
    const other = context.record(() => {});
    expect(other).toBe(1);
    context.replay(other);
    context.forget(freed);
    expect(() => context.replay(freed)).toThrow('argument 0 must be the number of a graph');
    expect(context.record(() => {})).toBe(freed);
    expect(() => context.replay(9)).toThrow('argument 0 must be the number of a graph');
    expect(() => context.record(1 as never)).toThrow('argument 0 must be a function');
  });

  it('tell what went wrong in them', async () => {
    const emulator = emulatorControls();
    if (!emulator) throw new Error('no emulator');
    using q = make();
    using planned = plan({ q: [1, 8, 1, 8], device });
    using graph = planned.capture(q, q, q);
    emulator.failLaunch(701);
    expect(() => {
      graph.replay();
      graph.replay();
    }).toThrow('a recorded plan');
    graph.replay();
  });
});
