#pragma once
/// Sessions: what a cache holds, as bytes that can be written to a file or sent, and taken up again later, by another process, on
/// another machine. Paid for by who includes this header.
#include <concepts>
#include <cstdint>
#include <span>
#include <string>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/session/options.hpp"

namespace kvc::inline KVC_ABI {

/// Saves forks together, as the function for one cache saves that: blocks that they share are written once. Throws
/// Error(invalid_argument) unless all are forks of the same cache.
KVC_FORWARD std::uint64_t save(std::span<const CacheCore* const> forks, ByteSink sink,
                               const SessionOptions& options = {});

/// Loads forks that were saved together, in the same order. They share blocks again, so they are forks of one cache here too:
/// make them by fork() of one, which may be empty.
KVC_FORWARD std::uint64_t load(std::span<CacheCore* const> forks, const SessionSource& source,
                               const SessionOptions& options = {});

/// Saves a cache: rows as they are encoded, positions, multiplicities, budgets, and what policies remember. The sink gets a
/// few hundred bytes at a time, or the rows of a block; a sink that counts says how many there will be. Returns their number.
/// Nothing of the cache changes, so other threads may read it meanwhile.
///
/// Throws Error(invalid_argument) while drafted tokens wait for accept(), and while a prompt is open (its last part, or
/// compress(), ends it): what waits for a decision, and what policies remember of an open prompt, is no part of a session.
/// Throws Error(incompatible) where a policy keeps a State that does not declare its fields (kvc/policy/fields.hpp), or a codec
/// was fitted to a head; Error(bad_file) where the sink takes no more.
inline std::uint64_t save(const CacheCore& cache, ByteSink sink, const SessionOptions& options = {}) {
  const CacheCore* const one = &cache;
  return save(std::span<const CacheCore* const>(&one, 1), sink, options);
}

/// Loads a session into a cache of the same shape under the same policy: whatever the cache held in those layers goes, and every
/// later answer is, bit for bit, the one that the saved cache would have given. Returns how many bytes were taken; what follows
/// them in the source is left there.
///
/// Throws Error, and leaves the cache as it was, bit for bit, where the session is damaged or none at all (bad_file), was written
/// by another version, for another model or policy (incompatible), or memory is refused (out_of_memory). A session need not be
/// trusted: sizes are checked before memory is taken, and no content makes a later call read outside of its memory.
///
/// `source` is a function that gives the next bytes (ByteSource), or SessionInMemory, whose blocks are not copied.
inline std::uint64_t load(CacheCore& cache, const SessionSource& source, const SessionOptions& options = {}) {
  CacheCore* const one = &cache;
  return load(std::span<CacheCore* const>(&one, 1), source, options);
}

namespace detail {
template <class P>
concept HasText = requires(const P& policy) {
  { policy.to_string() } -> std::convertible_to<std::string>;
};
}  // namespace detail

/// The same for a policy that knows its text.
template <detail::HasText P>
std::uint64_t save(const KVCache<P>& cache, ByteSink sink, LayerRange layers = {}) {
  const std::string text = cache.policy().to_string();
  return save(cache, sink, SessionOptions{.layers = layers, .policy = text});
}
template <detail::HasText P>
std::uint64_t load(KVCache<P>& cache, const SessionSource& source, LayerRange layers = {}) {
  const std::string text = cache.policy().to_string();
  return load(cache, source, SessionOptions{.layers = layers, .policy = text});
}

}  // namespace kvc::inline KVC_ABI

#if !defined(KVC_COMPILED)
#include "kvc/session/implementation.hpp"
#endif
