#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kvc/kernels/dispatch.hpp"
#include "kvc/rotary.hpp"
#include "kvc/storage/row_store.hpp"

namespace kvc::inline KVC_ABI::attention {

/// What attention needs to know of the model and of the policy's placement.
struct Settings {
  const CacheShape* shape = nullptr;
  bool in_cache = false;  ///< tokens stand at their slot index, not at their position in the text
  Arithmetic arithmetic = Arithmetic::exact;
  Position window = 0;                      ///< of the layer: see LayerShape
  std::span<const float> sink_logits = {};  ///< of the layer's query heads, or none
};

/// Queries of one KV head: row t * group + g belongs to token t, scaled by the logit scale already.
struct Queries {
  const float* data = nullptr;  ///< [tokens * group, head_dim], contiguous
  std::size_t tokens = 0, group = 1, dim = 0;
  /// Per token, where it stands in the cache minus where its rotary embedding put it; only for in-cache positions.
  std::span<const std::int32_t> shifts = {};
  /// Per token, its position in the text; only read where the layer has a window.
  std::span<const Position> positions = {};
  std::span<const float> sink_logits = {};  ///< [group], or none

  std::size_t rows() const { return tokens * group; }
  /// The queries of tokens [first, first + count).
  Queries part(std::size_t first, std::size_t count) const {
    return {data + first * group * dim,
            count,
            group,
            dim,
            shifts.empty() ? shifts : shifts.subspan(first, count),
            positions.empty() ? positions : positions.subspan(first, count),
            sink_logits};
  }
};

/// Copies the head's queries out of a layer's rows and scales them.
inline Queries load_queries(const Settings& settings, ConstRows layer_queries, std::size_t head,
                            std::span<float> memory) {
  const CacheShape& shape = *settings.shape;
  const std::size_t group = shape.group(), dim = shape.head_dim;
  const float scale = shape.logit_scale();
  for (std::size_t t = 0; t < layer_queries.count; ++t)
    std::copy_n(layer_queries[t].data() + head * group * dim, group * dim, memory.data() + t * group * dim);
  const std::size_t all = layer_queries.count * group * dim;
  kernels::active().scale_rows(memory.data(), all, 1, all, &scale);
  Queries queries{memory.data(), layer_queries.count, group, dim};
  if (!settings.sink_logits.empty()) queries.sink_logits = settings.sink_logits.subspan(head * group, group);
  return queries;
}

/// Queries as the blocks of one head want them: turned by the distance between the position that a key was rotated for and where it
/// is wanted, and prepared by every codec that asks for it. Each query is prepared once per call of attention, or once per
/// distance where keys are wanted elsewhere: at in-cache positions, and after CacheCore::shift.
class PreparedQueries {
 public:
  /// It lives as long as `frame`, whose memory it works in; the queries' memory must live as long. `turns`: whether turn() will be
  /// called before of().
  PreparedQueries(const Queries& queries, const RowStore& keys, const Settings& settings, bool turns,
                  Workspace::Frame& frame)
      : queries_(queries), rotary_(settings.shape->rotary), current_(queries.data), codecs_(keys.transforming()) {
    if (turns) {
      turned_ = frame.take(queries.rows() * queries.dim);
      rotation_ = {frame.take(rotary_.inv_freq.size()), frame.take(rotary_.inv_freq.size())};
    }
    prepared_ = frame.take<Rows<float>>(codecs_.size());
    for (std::size_t i = 0; i < codecs_.size(); ++i) {
      const std::size_t dim = codecs_[i]->prepared_dim(), stride = round_up(dim, TileLanes);
      prepared_[i] = {frame.take(queries.rows() * stride).data(), queries.rows(), dim, stride};
    }
    if (!turns) prepare();
  }

  const Queries& queries() const { return queries_; }
  std::size_t rows() const { return queries_.rows(); }
  std::size_t tokens() const { return queries_.tokens; }
  std::size_t group() const { return queries_.group; }

  /// For keys that were rotated for `shift` positions further than where they are wanted, from now on: turning a query by the
  /// difference gives the same product as turning the key.
  void turn(std::int32_t shift) {
    if (is_turned_ && shift == shift_) return;
    is_turned_ = true;
    shift_ = shift;
    std::copy_n(queries_.data, queries_.rows() * queries_.dim, turned_.data());
    std::int32_t set = 0;
    for (std::size_t row = 0; row < queries_.rows(); ++row) {
      const std::int32_t delta = shift + (queries_.shifts.empty() ? 0 : queries_.shifts[row / queries_.group]);
      if (delta == 0) continue;
      if (delta != set) rotation_.set(rotary_, delta);  // the tokens of a prompt mostly have one distance
      set = delta;
      rotation_.apply(rotary_, turned_.subspan(row * queries_.dim, queries_.dim));
    }
    current_ = turned_.data();
    prepare();
  }

  kernels::Coefficients of(const Codec& codec) const {
    for (std::size_t i = 0; i < codecs_.size(); ++i)
      if (codecs_[i].get() == &codec && prepared_[i].dim != 0)
        return {prepared_[i].data, prepared_[i].count, prepared_[i].stride};
    return {current_, queries_.rows(), queries_.dim};
  }

 private:
  void prepare() {
    for (std::size_t i = 0; i < codecs_.size(); ++i)
      if (prepared_[i].dim != 0) codecs_[i]->prepare({current_, queries_.rows(), queries_.dim}, prepared_[i]);
  }

  Queries queries_;
  const Rotary& rotary_;
  const float* current_;
  std::span<const std::shared_ptr<const Codec>> codecs_;
  std::span<float> turned_;
  Rotation rotation_;
  std::span<Rows<float>> prepared_;
  bool is_turned_ = false;
  std::int32_t shift_ = 0;
};

}  // namespace kvc::inline KVC_ABI::attention
