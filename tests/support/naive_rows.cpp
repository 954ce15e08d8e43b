#include "support/naive_rows.hpp"

#include <algorithm>

namespace naive {

double rounded(kvc::Scalar type, double value) {
  const float single = static_cast<float>(value);
  if (type == kvc::Scalar::f16) return kvc::from_half(kvc::to_half(single));
  if (type == kvc::Scalar::bf16) return kvc::from_bfloat(kvc::to_bfloat(single));
  return single;
}

Row quantized(const Row& group, unsigned bits, kvc::Scalar metadata) {
  const auto [low, high] = std::minmax_element(group.begin(), group.end());
  const auto levels = static_cast<float>((1u << bits) - 1);
  const auto scale = static_cast<float>(rounded(metadata, (float(*high) - float(*low)) / levels));
  const auto minimum = static_cast<float>(rounded(metadata, *low));
  Row read;
  for (const double x : group) {
    const float code = scale > 0 ? std::clamp(std::nearbyint((float(x) - minimum) / scale), 0.0f, levels) : 0.0f;
    // Rounded twice, as reading back is: rows that are quantized again often lie exactly between two codes.
    const auto step = static_cast<float>(double(code) * double(scale));
    read.push_back(static_cast<float>(double(step) + double(minimum)));
  }
  return read;
}

void quantize_together(std::vector<Row*> rows, const kvc::GroupQuant& format) {
  const std::size_t dim = rows[0]->size();
  if (format.axis == kvc::Axis::token) {
    for (Row* row : rows)
      for (std::size_t begin = 0; begin < dim; begin += format.group) {
        const auto from = row->begin() + std::ptrdiff_t(begin);
        const Row read = quantized(Row(from, from + std::ptrdiff_t(format.group)), format.bits, format.metadata);
        std::copy(read.begin(), read.end(), from);
      }
    return;
  }
  for (std::size_t begin = 0; begin < rows.size(); begin += format.group)
    for (std::size_t c = 0; c < dim; ++c) {
      Row group;
      for (std::size_t i = 0; i < format.group; ++i) group.push_back((*rows[begin + i])[c]);
      const Row read = quantized(group, format.bits, format.metadata);
      for (std::size_t i = 0; i < format.group; ++i) (*rows[begin + i])[c] = read[i];
    }
}

/// Groups as they come; a rest that is at most half a group joins the one before it, in a block of their own. Other blocks hold
/// up to 256 rows.
static void seal_whole(const std::vector<Stored*>& candidates, const std::vector<Row*>& rows, kvc::GroupQuant format,
                       Blocks& blocks) {
  const std::size_t group = format.axis == kvc::Axis::channel ? format.group : 1;
  for (std::size_t begin = 0, count = 0; begin < rows.size(); begin += count) {
    const std::size_t left = rows.size() - begin;
    if (left <= group + group / 2) {
      count = left;
      if (group > 1) format.group = left;
    } else {
      count = std::min<std::size_t>(left, 256) / group * group;
      if (left != count && left - count + group <= group + group / 2) count -= group;
    }
    quantize_together({rows.begin() + std::ptrdiff_t(begin), rows.begin() + std::ptrdiff_t(begin + count)}, format);
    std::size_t taken = 0;
    const std::size_t block = blocks.take(count, true, taken);
    for (std::size_t i = begin; i < begin + count; ++i) candidates[i]->block = block;
  }
}

void seal_oldest(const std::vector<Stored*>& slots, const kvc::Stream& stream, Blocks& blocks, bool prompt_end) {
  if (!stream.format || !stream.format->get_if<kvc::GroupQuant>()) return;
  const auto& format = *stream.format->get_if<kvc::GroupQuant>();
  std::vector<Stored*> candidates;
  for (std::size_t slot = stream.sinks; slot + stream.recent < slots.size(); ++slot)
    if (!slots[slot]->sealed()) candidates.push_back(slots[slot]);
  const bool whole = prompt_end && stream.whole_prompt;
  if (!whole) candidates.resize(candidates.size() / stream.batch * stream.batch);
  if (candidates.empty()) return;
  std::vector<Row*> rows;
  for (Stored* stored : candidates) rows.push_back(&stored->values);
  if (whole) return seal_whole(candidates, rows, format, blocks);
  quantize_together(rows, format);
  // About 256 rows are sealed at once, in whole batches.
  const std::size_t piece = std::max(256 / stream.batch * stream.batch, stream.batch);
  for (std::size_t done = 0; done < candidates.size();) {
    std::size_t taken = 0;
    const std::size_t wanted = std::min(piece - done % piece, candidates.size() - done);
    const std::size_t block = blocks.take(wanted, format.axis == kvc::Axis::channel, taken);
    for (std::size_t i = 0; i < taken; ++i) candidates[done + i]->block = block;
    done += taken;
  }
}

std::size_t Blocks::take(std::size_t wanted, bool shares_scales, std::size_t& taken) {
  const bool room = !shares_scales && !blocks_.empty() && blocks_.back().rows < blocks_.back().capacity;
  if (!room) blocks_.push_back({++last_, shares_scales ? wanted : std::max<std::size_t>(wanted, 64), 0});
  taken = std::min(wanted, blocks_.back().capacity - blocks_.back().rows);
  blocks_.back().rows += taken;
  return blocks_.back().name;
}

std::size_t Blocks::share(std::size_t rows) {
  blocks_.push_back({++last_, rows, rows, true});
  return last_;
}

void Blocks::release(const std::vector<Stored*>& slots) {
  std::erase_if(blocks_, [&](const Block& block) {
    std::size_t live = 0;
    for (const Stored* slot : slots) live += slot->block == block.name;
    const bool gone = live == 0 || (block.rows - live) * 4 >= block.capacity * 3;
    for (Stored* slot : slots)
      if (gone && slot->block == block.name) slot->block = 0;
    return gone;
  });
}

void Blocks::forget_dead(const std::vector<Stored*>& slots) {
  std::erase_if(blocks_, [&](const Block& block) {
    return std::none_of(slots.begin(), slots.end(), [&](const Stored* slot) { return slot->block == block.name; });
  });
}

}  // namespace naive
