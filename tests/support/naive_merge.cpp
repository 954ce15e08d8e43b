#include "support/naive_merge.hpp"

namespace naive {

double product(const Row& a, const Row& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
  return sum;
}

double angle(const Row& a, const Row& b) {
  return std::acos(std::clamp(product(a, b) / std::sqrt(product(a, a) * product(b, b)), -1 + 1e-6, 1 - 1e-6));
}

void merge_rows(Head& below, Head& here, std::size_t first, Stored Slot::*side, const kvc::Stream& stream,
                const Merging& merging, Blocks& below_blocks, Blocks& here_blocks) {
  std::vector<double> angles;
  for (std::size_t slot = first; slot < here.size(); ++slot)
    angles.push_back(angle((below[slot].*side).values, (here[slot].*side).values));
  if (angles.empty()) return;
  const auto [least, most] = std::minmax_element(angles.begin(), angles.end());
  const double margin = merging.gamma * (*most - *least);

  std::vector<std::size_t> slots;
  std::vector<Row> directions;
  for (std::size_t i = 0; i < angles.size(); ++i) {
    if (angles[i] > *most - margin) continue;
    const Row &a = (below[first + i].*side).values, &b = (here[first + i].*side).values;
    Row direction(a.size());
    for (std::size_t c = 0; c < a.size(); ++c)
      direction[c] = std::sin((1 - merging.t) * angles[i]) * a[c] / std::sqrt(product(a, a)) +
                     std::sin(merging.t * angles[i]) * b[c] / std::sqrt(product(b, b));
    const double length = std::sqrt(product(direction, direction));
    for (double& x : direction) x = double(float(x / length));
    slots.push_back(first + i);
    directions.push_back(direction);
  }

  const auto* format = stream.format ? stream.format->get_if<kvc::GroupQuant>() : nullptr;
  const std::size_t granule = format && format->axis == kvc::Axis::channel ? format->group : 1;
  for (std::size_t done = 0; done < slots.size();) {
    std::size_t count = std::min<std::size_t>(256, slots.size() - done) / granule * granule;
    std::vector<Row*> rows;
    for (std::size_t i = 0; i < count; ++i) rows.push_back(&directions[done + i]);
    if (format && count != 0) quantize_together(rows, *format);
    if (count == 0) count = slots.size() - done;
    const std::size_t below_block = below_blocks.share(count), here_block = here_blocks.share(count);
    for (std::size_t i = done; i < done + count; ++i) {
      const auto give = [&](Stored& stored, std::size_t block) {
        const double norm = std::sqrt(product(stored.values, stored.values));
        for (std::size_t c = 0; c < stored.values.size(); ++c) stored.values[c] = norm * directions[i][c];
        stored.block = block;
      };
      give(below[slots[i]].*side, below_block);
      give(here[slots[i]].*side, here_block);
    }
    done += count;
  }
}

}  // namespace naive
