#pragma once
#include <utility>

#include "kvc/cache/impl.hpp"

// CacheCore's public face, forwarded to its inside: in this file, so that KVC_COMPILED can compile the inside once.
namespace kvc::inline KVC_ABI {

KVC_FORWARD CacheCore::CacheCore(const CacheShape& shape, Stages stages, const CacheOptions& options)
    : impl_(std::make_unique<Impl>(shape, std::move(stages), options)) {}
KVC_FORWARD CacheCore::CacheCore(const CacheCore& other) : impl_(std::make_unique<Impl>(*other.impl_)) {}
KVC_FORWARD CacheCore::~CacheCore() = default;

KVC_FORWARD void CacheCore::prefill(std::size_t layer, const Tokens& tokens, Rows<float> out, bool last_chunk) {
  impl_->prefill(layer, tokens, out, last_chunk);
}
KVC_FORWARD void CacheCore::decode(std::size_t layer, const Tokens& tokens, Rows<float> out) {
  impl_->decode(layer, tokens, out);
}
KVC_FORWARD void CacheCore::draft(std::size_t layer, const Tokens& tokens, Rows<float> out) {
  impl_->draft(layer, tokens, out);
}
KVC_FORWARD void CacheCore::accept(std::size_t tokens) {
  impl_->accept(tokens);
}
KVC_FORWARD void CacheCore::probe(std::size_t layer, const Tokens& tokens, Rows<float> out, Position begin,
                                  Position end) {
  impl_->probe(layer, tokens, out, begin, end);
}
KVC_FORWARD void CacheCore::attend(std::size_t layer, ConstRows queries, Rows<float> out, float* lse) const {
  impl_->attend(layer, queries, out, lse);
}
KVC_FORWARD void CacheCore::compress() {
  impl_->compress();
}
KVC_FORWARD void CacheCore::make_room(std::size_t tokens) {
  impl_->make_room(tokens);
}
KVC_FORWARD bool CacheCore::truncate(Position from) {
  return impl_->truncate(from);
}
KVC_FORWARD void CacheCore::clear() {
  impl_->clear();
}
KVC_FORWARD void CacheCore::reserve(std::size_t tokens) {
  impl_->reserve(tokens);
}

KVC_FORWARD const CacheShape& CacheCore::shape() const {
  return impl_->shape_;
}
KVC_FORWARD const Stages& CacheCore::stages() const {
  return impl_->stages_;
}
KVC_FORWARD Stats CacheCore::stats() const {
  return impl_->stats();
}
KVC_FORWARD Stats CacheCore::stats(std::size_t layer) const {
  return impl_->stats(layer);
}
KVC_FORWARD Stats CacheCore::stats(HeadId id) const {
  return impl_->store(id).stats(impl_->shape_);
}
KVC_FORWARD std::vector<Position> CacheCore::positions(HeadId id) const {
  return impl_->positions(id);
}
KVC_FORWARD void CacheCore::gather(HeadId id, Rows<float> keys, Rows<float> values) const {
  impl_->gather(id, keys, values);
}
KVC_FORWARD const RowStore& CacheCore::key_rows(HeadId id) const {
  return impl_->store(id).keys();
}
KVC_FORWARD const RowStore& CacheCore::value_rows(HeadId id) const {
  return impl_->store(id).values();
}

KVC_FORWARD std::size_t CacheCore::slot_count(HeadId id) const {
  return impl_->store(id).size();
}
KVC_FORWARD const std::byte* CacheCore::slot_bytes(const void* policy, HeadId id) const {
  return impl_->store(id).column(impl_->stage_of(policy));
}
KVC_FORWARD const AnyState& CacheCore::any_state(const void* policy, HeadId id) const {
  return *impl_->memory_[impl_->index(id)].states[impl_->stage_of(policy)];
}

KVC_FORWARD void decode_batch(std::span<CacheCore* const> caches, std::size_t layer, const Tokens& tokens,
                              Rows<float> out, Executor& executor) {
  if (caches.empty()) return CacheCore::Impl::decode_batch({}, layer, tokens, out, executor);
  const WorkspacePool::Lease workspace(*caches[0]->impl_->workspaces_);
  Workspace::Frame frame(*workspace);
  const auto inside = frame.take<CacheCore::Impl*>(caches.size());
  for (std::size_t b = 0; b < caches.size(); ++b) inside[b] = caches[b]->impl_.get();
  CacheCore::Impl::decode_batch(inside, layer, tokens, out, executor);
}

}  // namespace kvc
