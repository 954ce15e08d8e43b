#include "weight_memory.hpp"

#include <algorithm>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace engine {
namespace {

constexpr std::size_t HugePage = std::size_t{2} << 20;
constexpr std::size_t ChunkBytes = 16 * HugePage;

}  // namespace

WeightMemory::~WeightMemory() {
  for (void* chunk : chunks_) ::operator delete (chunk, std::align_val_t{HugePage});
}

void* WeightMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  void* place = next_;
  if (!std::align(alignment, bytes, place, left_)) {
    const std::size_t chunk_bytes = std::max(ChunkBytes, (bytes + HugePage - 1) / HugePage * HugePage);
    chunks_.reserve(chunks_.size() + 1);
    place = ::operator new (chunk_bytes, std::align_val_t{HugePage});
    chunks_.push_back(place);
    left_ = chunk_bytes;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    ::madvise(place, chunk_bytes, MADV_HUGEPAGE);  // only a wish: without huge pages the memory is slower
#endif
  }
  next_ = static_cast<std::byte*>(place) + bytes;
  left_ -= bytes;
  return place;
}

}  // namespace engine
