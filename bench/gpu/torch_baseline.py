"""Speed of attention in torch at the shapes of attention.ts: SDPA with FlashAttention and cuDNN, and FlexAttention.

    python3 torch_baseline.py --json torch.json [--rounds 11] [--dtypes bfloat16,float16] [--seconds 240]

FlexAttention is compiled for each shape, which takes seconds; it runs last, the most telling shapes first, until the
time is up. What cannot run is recorded with its reason.
"""

import argparse
import datetime
import json
import math
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

try:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
except ImportError:  # before torch 2.5
    flex_attention = None

TOKENS, WIDTH = 16384, 2048
DIMS = (64, 128, 256)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
FLEX_LENGTHS = (16384, 4096, 1024, 8192, 2048, 512)
FLEX_DIMS = (128, 64, 256)
TURNS = 2  # sets of inputs, each larger than any cache
SAMPLE_MS, MOST_RUNS = 3, 64


def shape_of(dtype, dim, length, causal):
    return {
        "dtype": dtype,
        "batch": TOKENS // length,
        "length": length,
        "heads": WIDTH // dim,
        "dim": dim,
        "causal": causal,
    }


def sample(run, turns, runs):
    """Milliseconds of one run, between two events around `runs` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for i in range(runs):
        run(i % turns)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / runs


def measure(run, rounds):
    sample(run, TURNS, TURNS)
    once = sample(run, TURNS, TURNS)
    runs = min(MOST_RUNS, max(1, math.ceil(SAMPLE_MS / once)))
    return statistics.median(sample(run, TURNS, runs) for _ in range(rounds))


class Inputs:
    """Random q, k, v and d_out, made once for every shape of a dtype."""

    def __init__(self, dtype):
        make = lambda: torch.randn(TOKENS * WIDTH, dtype=getattr(torch, dtype), device="cuda")
        self.sets = [[make() for _ in range(4)] for _ in range(TURNS)]

    def of(self, shape):
        """[batch, heads, length, dim], laid out as [batch, length, heads, dim]; q, k and v are leaves."""
        dims = (shape["batch"], shape["length"], shape["heads"], shape["dim"])
        for tensors in self.sets:
            q, k, v, d_out = (x.view(dims).transpose(1, 2) for x in tensors)
            yield [x.detach().requires_grad_() for x in (q, k, v)], d_out


def measure_shape(attention, shape, inputs, rounds):
    """Forward and backward milliseconds; None with the reason where a pass cannot run."""
    row = {**shape, "forwardMs": None, "backwardMs": None}
    sets = list(inputs.of(shape))
    try:
        with torch.no_grad():
            row["forwardMs"] = measure(lambda i: attention(*sets[i][0]), rounds)
        outs = [attention(*qkv) for qkv, _ in sets]
        backward = lambda i: torch.autograd.grad(outs[i], sets[i][0], sets[i][1], retain_graph=True)
        row["backwardMs"] = measure(backward, rounds)
    except Exception as error:  # of many kinds: unsupported shapes, failing compilers, memory
        row["error"] = str(error).strip().split("\n")[0][:200]
    return row


def sdpa(backend, shape):
    def attention(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=shape["causal"])

    return attention


def flex(shape):
    def visible(batch, head, query, key):
        return query >= key

    length = shape["length"]
    mask = create_block_mask(visible, None, None, length, length, device="cuda") if shape["causal"] else None
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


class Results:
    def __init__(self, path):
        self.path, self.rows = path, []

    def add(self, backend, row):
        self.rows.append({"backend": backend, **row})
        self.write()
        numbers = (str(row[name]).rjust(8) for name in ("dtype", "dim", "length", "batch", "heads"))
        cells = [backend.ljust(6), *numbers, "causal" if row["causal"] else "full  "]
        times = (f"{ms:9.3f}" if ms else "        -" for ms in (row["forwardMs"], row["backwardMs"]))
        print(*cells, *times, row.get("error", ""), flush=True)

    def write(self):
        """After every row, so that a run that is cut short leaves what it has measured."""
        versions = {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())}
        results = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "device": torch.cuda.get_device_name(),
            "versions": versions,
            "rows": self.rows,
        }
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


def run_sdpa(dtype, inputs, rounds, results):
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        for dim in DIMS:
            for causal in (False, True):
                for length in LENGTHS:
                    shape = shape_of(dtype, dim, length, causal)
                    results.add(name, measure_shape(sdpa(backend, shape), shape, inputs, rounds))


def run_flex(dtype, inputs, rounds, results, deadline):
    if flex_attention is None:
        print("FlexAttention is not in this torch", flush=True)
        return
    for length in FLEX_LENGTHS:
        for dim in FLEX_DIMS:
            for causal in (True, False):
                if time.monotonic() > deadline:
                    print("FlexAttention: the time is up", flush=True)
                    return
                shape = shape_of(dtype, dim, length, causal)
                results.add("flex", measure_shape(flex(shape), shape, inputs, rounds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dtypes", default="bfloat16,float16")
    parser.add_argument("--only", choices=("sdpa", "flex"), help="leave out the other")
    parser.add_argument("--seconds", type=float, default=240, help="after which no further shape is compiled")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    deadline = time.monotonic() + arguments.seconds
    results = Results(arguments.json)
    dtypes = arguments.dtypes.split(",")
    print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; milliseconds forward and backward")
    if arguments.only != "flex":
        for dtype in dtypes:
            run_sdpa(dtype, Inputs(dtype), arguments.rounds, results)
    if arguments.only != "sdpa":
        run_flex(dtypes[0], Inputs(dtypes[0]), arguments.rounds, results, deadline)


if __name__ == "__main__":
    main()
