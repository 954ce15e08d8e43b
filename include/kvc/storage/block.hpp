#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <utility>

#include "kvc/codec/codec.hpp"

namespace kvc::inline KVC_ABI {

/// Rows encoded together: the unit of allocation and of sharing between forks. Whoever writes owns it alone (see
/// RowTable::own).
class Block {
 public:
  /// Whether a new block's bytes are zero, or still to be written.
  enum class Content : bool { zero, unwritten };

  Block(std::shared_ptr<const Codec> codec, std::size_t capacity, std::pmr::memory_resource* memory,
        Content content = Content::zero)
      : codec_(std::move(codec)), memory_(memory), capacity_(static_cast<std::uint32_t>(capacity)) {
    data_ = static_cast<std::byte*>(memory_->allocate(bytes(), 64));
    if (content == Content::zero) std::memset(data_, 0, bytes());
  }
  Block(const Block& other) : Block(other.codec_, other.capacity_, other.memory_) {
    std::memcpy(data_, other.data_, bytes());
  }
  Block& operator=(const Block&) = delete;
  ~Block() {
    if (!lent_) memory_->deallocate(data_, bytes(), 64);
  }

  static std::shared_ptr<Block> make(std::shared_ptr<const Codec> codec, std::size_t capacity,
                                     std::pmr::memory_resource* memory, Content content = Content::zero) {
    return std::allocate_shared<Block>(std::pmr::polymorphic_allocator<Block>(memory), std::move(codec), capacity,
                                       memory, content);
  }
  /// A block whose rows lie in memory that `owner` keeps, such as a mapped file, and that nobody writes to. A copy of it has
  /// memory of its own. `data` is a multiple of 64.
  static std::shared_ptr<Block> lend(std::shared_ptr<const Codec> codec, std::size_t capacity,
                                     std::pmr::memory_resource* memory, const std::byte* data,
                                     std::shared_ptr<const void> owner);
  /// Whether it is such a block, which has to be copied before somebody writes to it.
  bool lent() const { return lent_; }
  std::shared_ptr<Block> clone() const {
    return std::allocate_shared<Block>(std::pmr::polymorphic_allocator<Block>(memory_), *this);
  }

  /// About what allocate_shared asks for besides the rows: the Block and its counts.
  static constexpr std::size_t shared_bytes() { return sizeof(Block) + 3 * sizeof(void*); }

  const Codec& codec() const { return *codec_; }
  const std::shared_ptr<const Codec>& shared_codec() const { return codec_; }
  std::size_t capacity() const { return capacity_; }
  std::size_t bytes() const { return codec_->block_bytes(capacity_); }
  const std::byte* data() const { return data_; }
  std::byte* data() { return data_; }

 protected:
  struct Lent {
    const std::byte* data;
  };
  Block(std::shared_ptr<const Codec> codec, std::size_t capacity, std::pmr::memory_resource* memory, Lent lent)
      : codec_(std::move(codec)),
        memory_(memory),
        data_(const_cast<std::byte*>(lent.data)),
        capacity_(static_cast<std::uint32_t>(capacity)),
        lent_(true) {}

 private:
  std::shared_ptr<const Codec> codec_;
  std::pmr::memory_resource* memory_;
  std::byte* data_;
  std::uint32_t capacity_;
  bool lent_ = false;
};

namespace detail {
/// Only blocks that are lent pay for their owner.
class LentBlock final : public Block {
 public:
  LentBlock(std::shared_ptr<const Codec> codec, std::size_t capacity, std::pmr::memory_resource* memory,
            const std::byte* data, std::shared_ptr<const void> owner)
      : Block(std::move(codec), capacity, memory, Lent{data}), owner_(std::move(owner)) {}

 private:
  std::shared_ptr<const void> owner_;
};
}  // namespace detail

inline std::shared_ptr<Block> Block::lend(std::shared_ptr<const Codec> codec, std::size_t capacity,
                                          std::pmr::memory_resource* memory, const std::byte* data,
                                          std::shared_ptr<const void> owner) {
  return std::allocate_shared<detail::LentBlock>(std::pmr::polymorphic_allocator<detail::LentBlock>(memory),
                                                 std::move(codec), capacity, memory, data, std::move(owner));
}

}  // namespace kvc::inline KVC_ABI
