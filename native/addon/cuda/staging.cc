#include "staging.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace flashattn {

cudaError_t UploadRing::upload(void* target, const unsigned char* source, size_t bytes, cudaStream_t stream) {
  if (ring_.data() == nullptr) {
    const cudaError_t error = ring_.allocate(kRingBytes);
    if (error != cudaSuccess) return error;
  }
  for (size_t done = 0; done < bytes;) {
    const size_t chunk = std::min(bytes - done, kChunkBytes);
    size_t begin = 0;
    cudaError_t error = take(chunk, &begin);
    if (error != cudaSuccess) return error;
    std::memcpy(ring_.data() + begin, source + done, chunk);
    error = cudaMemcpyAsync(static_cast<unsigned char*>(target) + done, ring_.data() + begin, chunk,
                            cudaMemcpyHostToDevice, stream);
    if (error != cudaSuccess) return error;
    Segment segment{begin, begin + chunk, {}};
    if (!idle_.empty()) {
      segment.copied = std::move(idle_.back());
      idle_.pop_back();
    }
    error = segment.copied.record(stream);
    if (error != cudaSuccess) return error;
    pending_.push_back(std::move(segment));
    done += chunk;
  }
  return cudaSuccess;
}

/** Finds room for `bytes` bytes behind the last segment, at the start of the ring when its end is too near. */
cudaError_t UploadRing::take(size_t bytes, size_t* begin) {
  const bool wraps = next_ + bytes > kRingBytes;
  const size_t from = wraps ? 0 : next_;
  const auto in_the_way = [&](const Segment& s) {
    return (s.begin < from + bytes && from < s.end) || (wraps && s.begin >= next_);
  };
  while (!pending_.empty() && (in_the_way(pending_.front()) || pending_.front().copied.reached())) {
    const cudaError_t error = retire_oldest();
    if (error != cudaSuccess) return error;
  }
  *begin = from;
  next_ = (from + bytes + kAlignment - 1) / kAlignment * kAlignment;
  return cudaSuccess;
}

cudaError_t UploadRing::retire_oldest() {
  const cudaError_t error = pending_.front().copied.wait();
  if (error != cudaSuccess) return error;
  idle_.push_back(std::move(pending_.front().copied));
  pending_.pop_front();
  return cudaSuccess;
}

cudaError_t DownloadBlocks::acquire(size_t bytes, PinnedMemory* block) {
  // Blocks that are kept have few sizes, so that they fit again; the others are as large as they have to be.
  const size_t size = bytes > kKeptBytes ? bytes : std::bit_ceil(std::max(bytes, kSmallest));
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) { return kept.size() == size; });
  if (found != kept_.end()) {
    *block = std::move(*found);
    kept_.erase(found);
    kept_bytes_ -= size;
    return cudaSuccess;
  }
  const cudaError_t error = block->allocate(size);
  if (error != cudaSuccess) return error;
  reserved_ += size;
  return cudaSuccess;
}

void DownloadBlocks::release(PinnedMemory block) {
  if (kept_bytes_ + block.size() > kKeptBytes) {
    reserved_ -= block.size();
    return;
  }
  kept_bytes_ += block.size();
  kept_.push_back(std::move(block));
}

void DownloadBlocks::clear() {
  kept_.clear();
  reserved_ -= std::exchange(kept_bytes_, 0);
}

}  // namespace flashattn
