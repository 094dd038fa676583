// Errors as CUDA hands them out: at once to the caller, or later, on the stream where the work went wrong.
#pragma once
#include "../calls.h"
#include "cuda_runtime_api.h"

namespace emulator {

/** Remembers an error for cudaGetLastError of this host thread, and returns it. */
cudaError_t fail(cudaError_t);

/** While events are held, whoever waits for one blocks, as for a device that is at work. */
void hold_events(bool held);
void wait_while_held();

/** The device that a stream belongs to: of the default stream, this thread's. -1: there is no such stream. */
int device_of(cudaStream_t);

/** The next call on the stream, or cudaGetLastError, returns this error; only once, unlike CUDA. */
void fail_later(cudaStream_t, cudaError_t);

/** The error that waits on a stream, which it then no longer does. */
cudaError_t take_failure(cudaStream_t);
/** The error that waits on any stream. */
cudaError_t take_any_failure();

/**
 * While a stream is captured, launches are kept for its graph: `kept` says whether this one was. Whatever else is asked of
 * the stream is an error that makes the capture fail, though CUDA could keep copies and events too.
 */
cudaError_t capture(const Launch&, bool* kept);
cudaError_t refuse_capture(cudaStream_t);

}  // namespace emulator
