#include "support/naive_policies.hpp"

namespace naive {

std::vector<bool> everything(const Head& head) {
  return std::vector<bool>(head.size(), true);
}

std::vector<bool> newest(const Head& head, std::size_t count) {
  std::vector<bool> stays(head.size());
  for (std::size_t slot = 0; slot < head.size(); ++slot) stays[slot] = slot + count >= head.size();
  return stays;
}

std::vector<bool> best(std::vector<bool> stays, const std::vector<double>& scores, std::size_t budget) {
  std::vector<std::size_t> others;
  for (std::size_t slot = 0; slot < stays.size(); ++slot)
    if (!stays[slot]) others.push_back(slot);
  std::stable_sort(others.begin(), others.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  std::size_t kept = stays.size() - others.size();
  for (std::size_t i = 0; i < others.size() && kept < budget; ++i, ++kept) stays[others[i]] = true;
  return stays;
}

Keep streaming(std::size_t budget) {
  return [=](const Head& head, Event event) {
    std::vector<bool> stays = everything(head);
    if (event == Event::prompt_chunk) return stays;
    for (std::size_t slot = 4; slot + budget - 4 < head.size(); ++slot) stays[slot] = false;
    return stays;
  };
}

Keep heavy_hitters(std::size_t budget) {
  return [=](const Head& head, Event event) {
    if (event == Event::prompt_chunk || head.size() <= budget) return everything(head);
    std::vector<double> masses;
    for (const Slot& slot : head) masses.push_back(slot.mass);
    return best(newest(head, budget / 2), masses, budget);
  };
}

Keep lowest_norms(std::size_t budget) {
  return [=](const Head& head, Event event) {
    if (event != Event::prompt_end || head.size() <= budget) return everything(head);
    std::vector<double> scores;
    for (const Slot& slot : head) {
      double squares = 0;
      for (const double x : slot.key.values) squares += x * x;
      scores.push_back(-std::sqrt(squares));
    }
    return best(std::vector<bool>(head.size()), scores, budget);
  };
}

Keep engine_scores(std::size_t budget, std::size_t recent, bool decoding) {
  return [=](const Head& head, Event event) {
    const bool acts = event == Event::prompt_end || (decoding && event == Event::decode);
    if (!acts || head.size() <= budget) return everything(head);
    std::vector<double> scores;
    for (const Slot& slot : head) scores.push_back(double(slot.score));
    return best(newest(head, recent), scores, budget);
  };
}

Keep votes(std::size_t budget, std::size_t window, std::size_t kernel) {
  return [=](const Head& head, Event event) {
    if (event != Event::prompt_end || head.size() <= budget) return everything(head);
    const std::size_t prefix = head.size() - std::min(window, head.size());
    std::vector<double> votes(prefix), pooled(head.size());
    for (std::size_t slot = 0; slot < prefix; ++slot) {
      const Row& received = head[slot].received;
      const std::size_t count = std::min(window, received.size());
      for (std::size_t i = received.size() - count; i < received.size(); ++i) votes[slot] += received[i];
    }
    for (std::size_t slot = 0; slot < prefix; ++slot)
      for (std::size_t near = slot < kernel / 2 ? 0 : slot - kernel / 2; near < std::min(prefix, slot + kernel / 2 + 1);
           ++near)
        pooled[slot] += votes[near] / double(kernel);
    return best(newest(head, window), pooled, budget);
  };
}

Cache::Select best_pages(std::size_t tokens, std::size_t page, std::size_t dense_layers) {
  return [=](std::size_t layer, const Head& head, const std::vector<Row>& queries) {
    const std::size_t pages = (head.size() + page - 1) / page, wanted = std::max<std::size_t>(3, tokens / page);
    if (layer < dense_layers || pages <= wanted) return everything(head);
    std::vector<double> bounds;
    for (std::size_t p = 0; p + 1 < pages; ++p) {
      double bound = -HUGE_VAL;
      for (const Row& query : queries) {
        double sum = 0;
        for (std::size_t c = 0; c < query.size(); ++c) {
          double largest = -HUGE_VAL;
          for (std::size_t slot = p * page; slot < (p + 1) * page; ++slot)
            largest = std::max(largest, query[c] * head[slot].key.values[c]);
          sum += largest;
        }
        bound = std::max(bound, sum);
      }
      bounds.push_back(bound);
    }
    std::vector<bool> chosen = best(std::vector<bool>(bounds.size()), bounds, wanted - 1);
    chosen.push_back(true);
    std::vector<bool> slots(head.size());
    for (std::size_t slot = 0; slot < head.size(); ++slot) slots[slot] = chosen[slot / page];
    return slots;
  };
}

Cache::Farewell compensating(std::size_t sinks) {
  return [=](Head& head, const std::vector<bool>& stays) {
    std::vector<std::size_t> gone;
    for (std::size_t slot = 0; slot < stays.size(); ++slot)
      if (!stays[slot]) gone.push_back(slot);
    if (gone.empty()) return;
    // It stands behind the sinks, unless some of these have left a window of the layer.
    const auto known = std::ranges::find_if(head, [](const Slot& slot) { return !slot.key_sum.empty(); });
    Slot& mean = known != head.end() ? *known : head[sinks];
    if (mean.key_sum.empty()) {
      mean.key_sum = mean.key.values;
      mean.value_sum = mean.value.values;
    }
    const auto add = [](Row& sum, const Row& row, double tokens) {
      for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += tokens * row[c];
    };
    for (const std::size_t slot : gone) {
      add(mean.key_sum, head[slot].key.values, head[slot].multiplicity);
      add(mean.value_sum, head[slot].value.values, head[slot].multiplicity);
      mean.multiplicity += head[slot].multiplicity;
    }
    const auto divide = [&](Row& row, const Row& sum) {
      for (std::size_t c = 0; c < row.size(); ++c) row[c] = double(float(sum[c] / mean.multiplicity));
    };
    divide(mean.key.values, mean.key_sum);
    divide(mean.value.values, mean.value_sum);
    mean.key.block = mean.value.block = 0;
  };
}

std::vector<kvc::Position> positions_of(const Head& head) {
  std::vector<kvc::Position> positions;
  for (const Slot& slot : head) positions.push_back(slot.position);
  return positions;
}

}  // namespace naive
