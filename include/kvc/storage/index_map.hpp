#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvc/storage/runs.hpp"

namespace kvc::inline KVC_ABI {

/// A list of indices that costs nothing while entry i is i: positions, and slot to row, before anything was evicted.
class IndexMap {
 public:
  std::size_t size() const { return size_; }
  bool identity() const { return identity_; }
  std::int32_t operator[](std::size_t i) const { return identity_ ? static_cast<std::int32_t>(i) : entries_[i]; }
  std::size_t capacity() const { return entries_.capacity(); }
  std::size_t bytes() const { return entries_.capacity() * sizeof(std::int32_t); }
  /// The explicit entries; empty while identity.
  std::span<const std::int32_t> entries() const { return entries_; }

  /// Calls visit(i, entry i) for all entries.
  template <class Visit>
  void for_each_entry(Visit visit) const {
    const std::int32_t* entries = entries_.data();
    const std::size_t size = size_;
    if (identity_)
      for (std::size_t i = 0; i < size; ++i) visit(i, i);
    else
      for (std::size_t i = 0; i < size; ++i) visit(i, static_cast<std::size_t>(entries[i]));
  }

  friend bool operator==(const IndexMap& a, const IndexMap& b) {
    if (a.size_ != b.size_) return false;
    if (!a.identity_ && !b.identity_)
      return a.size_ == 0 || std::memcmp(a.entries_.data(), b.entries_.data(), a.size_ * sizeof(std::int32_t)) == 0;
    for (std::size_t i = 0; i < (a.identity_ == b.identity_ ? 0 : a.size_); ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

  void push_back(std::int32_t index) {
    if (identity_ && index != static_cast<std::int32_t>(size_)) materialise();
    if (!identity_) entries_.push_back(index);
    ++size_;
  }
  void set(std::size_t i, std::int32_t index) {
    if ((*this)[i] == index) return;
    materialise();
    entries_[i] = index;
  }
  /// Keeps the entries whose flag is not 0; identity survives if all that is dropped lies at the end.
  void keep(std::span<const std::uint8_t> flags) {
    const std::size_t dropped = detail::first_unset(flags.first(size_));
    std::size_t last = size_;
    while (last > dropped && !flags[last - 1]) --last;
    if (last > dropped) materialise();
    if (identity_) {
      size_ = dropped;
      return;
    }
    size_ = detail::for_each_moved_run(flags.first(size_), [&](std::size_t from, std::size_t to, std::size_t count) {
      std::memmove(&entries_[to], &entries_[from], count * sizeof(std::int32_t));
    });
    entries_.resize(size_);
  }
  void truncate(std::size_t size) {
    if (!identity_) entries_.resize(size);
    size_ = size;
  }
  /// Entry i is i again, for `size` entries.
  void reset(std::size_t size) {
    entries_.clear();
    identity_ = true;
    size_ = size;
  }
  /// Becomes a list of explicit entries.
  void restore(std::vector<std::int32_t> entries) noexcept {
    entries_ = std::move(entries);
    size_ = entries_.size();
    identity_ = false;
  }
  /// Adds `change` to the entries [begin, end). Throws what allocation throws.
  void add(std::size_t begin, std::size_t end, std::int32_t change) {
    materialise();
    for (std::size_t i = begin; i < end; ++i) entries_[i] += change;
  }
  /// Identity again, and free of cost, if that is what the entries say.
  void settle() {
    if (identity_) return;
    for (std::size_t i = 0; i < size_; ++i)
      if (entries_[i] != static_cast<std::int32_t>(i)) return;
    reset(size_);
    std::vector<std::int32_t>().swap(entries_);
  }
  /// Room for `size` explicit entries.
  void reserve(std::size_t size) { entries_.reserve(size); }
  /// Room for `count` more entries, explicit ones if the list is explicit or `breaks` the order: adding them, and then
  /// changing any entry, allocates nothing.
  void reserve_more(std::size_t count, bool breaks) {
    if (identity_ && !breaks) return;
    const std::size_t needed = size_ + count;
    if (entries_.capacity() < needed) entries_.reserve(identity_ ? needed : std::max(needed, 2 * size_));
  }
  /// Room for what keep() of these flags makes explicit.
  void reserve_keep(std::span<const std::uint8_t> flags) {
    if (!identity_) return;
    const std::size_t dropped = detail::first_unset(flags);
    for (std::size_t i = dropped; i < flags.size(); ++i)
      if (flags[i] != 0) return entries_.reserve(size_);
  }
  /// Undoes push_back() until `size` entries are left, of a list that was identity or was not before them.
  void revert(std::size_t size, bool was_identity) { was_identity ? reset(size) : truncate(size); }
  /// Adds `change` to every entry that is `from` or more; the list becomes explicit. At most `count` entries are. The search
  /// begins at the end, because rows that move are mostly the newest slots'.
  void shift(std::int32_t from, std::int32_t change, std::size_t count) {
    materialise();
    std::size_t end = size_;
    while (count > 0 && end >= AtOnce) {
      end -= AtOnce;
      std::int32_t* entries = entries_.data() + end;
      std::int32_t found = 0;
      for (std::size_t i = 0; i < AtOnce; ++i) found += entries[i] >= from;
      for (std::size_t i = 0; i < AtOnce; ++i) entries[i] += entries[i] >= from ? change : 0;
      count -= std::min(count, static_cast<std::size_t>(found));
    }
    for (std::size_t i = 0; count > 0 && i < end; ++i) entries_[i] += entries_[i] >= from ? change : 0;
  }
  /// Calls visit(i) for every i, ascending, whose entry lies in [begin, end).
  template <class Visit>
  void for_each_within(std::int32_t begin, std::int32_t end, Visit visit) const {
    if (identity_) {
      for (auto i = static_cast<std::size_t>(begin); i < std::min(static_cast<std::size_t>(end), size_); ++i) visit(i);
      return;
    }
    const std::int32_t* entries = entries_.data();
    for (std::size_t i = 0; i < size_; i += AtOnce) {
      std::int32_t within = 0;
      if (i + AtOnce <= size_)
        for (std::size_t j = i; j < i + AtOnce; ++j) within |= (entries[j] >= begin) & (entries[j] < end);
      else
        within = 1;
      for (std::size_t j = i; within != 0 && j < std::min(i + AtOnce, size_); ++j)
        if (entries[j] >= begin && entries[j] < end) visit(j);
    }
  }

 private:
  /// Loops over a constant number of entries become vectors at -O2.
  static constexpr std::size_t AtOnce = 16;

  void materialise() {
    if (!identity_) return;
    entries_.resize(size_);
    std::iota(entries_.begin(), entries_.end(), 0);
    identity_ = false;
  }

  std::vector<std::int32_t> entries_;
  std::size_t size_ = 0;
  bool identity_ = true;
};

}  // namespace kvc
