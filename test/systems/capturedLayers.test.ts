/** Gates, convolutions, curves and quantised layers, recorded once and run again with other numbers. */
import { capture, cast, type DeviceName, mul, parameter, scope, sum, type Tensor, tensor } from 'flashattn';
import type { Module } from 'flashattn/nn';
import {
  BitLinear,
  CBAM,
  CrateBlock,
  DynamicConv,
  GatedCrossAttention,
  int8SymmetricAttention,
  KANLinear,
  LightweightConv,
  SqueezeExcitation,
  ternaryAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { testDevices } from '../support/devices.js';
import { input } from './taped.js';

const shape = [2, 6, 8] as const;
type Heads = Tensor<'float32', readonly [number, number, number, number]>;

interface Step {
  readonly module?: Module;
  readonly run: (x: Tensor) => Tensor;
}

const layer = (module: Module & { forward(x: Tensor): Tensor }): Step => ({ module, run: (x) => module.forward(x) });

const attended = (attend: typeof ternaryAttention): Step => ({
  run: (x) => {
    const heads = x.reshape([2, 6, 2, 4]) as unknown as Heads;
    return attend(heads, heads, heads) as unknown as Tensor;
  },
});

const steps: Readonly<Record<string, (device: DeviceName) => Step>> = {
  SqueezeExcitation: (device) => layer(new SqueezeExcitation({ channels: 6, reduction: 2, device })),
  CBAM: (device) => {
    const module = new CBAM({ channels: 6, reduction: 2, kernelSize: 3, device });
    return { module, run: (x) => module.forward(x.reshape([2, 6, 4, 2])) };
  },
  LightweightConv: (device) => layer(new LightweightConv({ width: 8, heads: 2, kernelSize: 3, device })),
  DynamicConv: (device) => layer(new DynamicConv({ width: 8, heads: 2, kernelSize: 3, renormPadding: true, device })),
  CrateBlock: (device) => layer(new CrateBlock({ width: 8, heads: 2, device })),
  KANLinear: (device) => layer(new KANLinear({ inputs: 8, outputs: 3, device })),
  BitLinear: (device) => layer(new BitLinear(8, 4, { device })),
  GatedCrossAttention: (device) => {
    const module = new GatedCrossAttention({ width: 8, heads: 2, hidden: 8, device });
    const media = tensor(input([2, 2, 3, 8], 2).data, [2, 2, 3, 8], { device }) as Tensor;
    const locations = cast(tensor([0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1], [2, 6], { device }), 'bool');
    tensor([0.5], [1], { device }).copyInto(module.attentionGate.detach() as never);
    return { module, run: (x) => module.forward(x, media, locations as never) };
  },
  int8SymmetricAttention: () => attended(int8SymmetricAttention),
  ternaryAttention: () => attended(ternaryAttention),
};

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('captured layers'), () => {
    it.each(Object.entries(steps))('%s', (_, make) => {
      const { module, run } = make(device);
      const x = parameter(tensor(input(shape, 1).data, shape, { device }) as Tensor);
      const step = () => {
        const out = run(x);
        const loss = sum(mul(out, out) as Tensor);
        loss.backward();
        return loss;
      };
      const fresh = () => {
        x.grad = undefined;
        const loss = scope(step).toFloat32Sync()[0];
        return { loss, gradient: (x.grad as Tensor | undefined)?.toFloat32Sync() };
      };
      const first = fresh();
      using captured = capture(() => {
        x.grad = undefined;
        return { loss: step(), gradient: x.grad };
      });
      const replay = () => {
        const { loss, gradient } = captured.replay();
        return { loss: loss.toFloat32Sync()[0], gradient: (gradient as unknown as Tensor).toFloat32Sync() };
      };
      expect(replay()).toEqual(first);
      const other = tensor(input(shape, 5).data, shape, { device }) as Tensor;
      other.copyInto(x.detach());
      const again = replay();
      expect(again).toEqual(fresh());
      expect(again.loss).not.toBe(first.loss);
      module?.dispose();
      for (const t of [x, other]) t.dispose();
    });
  });
});
