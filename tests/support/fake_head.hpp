#pragma once
#include <kvc/policy/stage.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace support {

/// One head over plain vectors, to test a policy without a cache: tokens are random unless a test overwrites them,
/// attention is computed naively in double, plans are executed by copying what stays. Members of the policy have their memory
/// and observe too. There is no rotary embedding.
template <class P>
class FakeHead final : public kvc::HeadSource {
 public:
  explicit FakeHead(P tested, kvc::CacheShape cache_shape = small_shape(), kvc::HeadId head_id = {})
      : policy(tested),
        shape(std::move(cache_shape)),
        id(head_id),
        stage_(std::make_shared<const kvc::StageOf<P>>(std::move(tested))),
        random_(1 + head_id.head) {
    add_members(*stage_);
  }

  static kvc::CacheShape small_shape() { return {.query_heads = 2, .kv_heads = 1, .head_dim = 8}; }

  P policy;
  kvc::CacheShape shape;
  kvc::HeadId id;
  std::vector<kvc::Position> positions;
  std::vector<kvc::Slot<P>> slots;
  kvc::State<P> state{};
  kvc::PromptState<P> prompt{};
  std::vector<std::vector<float>> stored_keys, stored_values;
  std::vector<float> multiplicity;          ///< empty: every slot stands for one token
  std::vector<std::vector<float>> queries;  ///< of every token seen, the group's side by side
  std::size_t seen = 0;

  /// Appends tokens without telling the policy.
  void append(std::size_t tokens) {
    for (std::size_t i = 0; i < tokens; ++i) {
      positions.push_back(static_cast<kvc::Position>(seen++));
      slots.push_back({});
      for (MemberMemory& member : members_) member.append();
      stored_keys.push_back(row(shape.head_dim));
      stored_values.push_back(row(shape.values_dim()));
      if (!multiplicity.empty()) multiplicity.push_back(1);
      queries.push_back(row(shape.head_dim * shape.group()));
    }
  }

  kvc::Head<P> head(kvc::Event event) {
    kvc::Head<P> view;
    view.id = id;
    view.event = event;
    view.acts = kvc::acts_after(stage_->when(), event);
    view.seen = seen;
    view.shape = &shape;
    view.positions = positions;
    view.multiplicity = multiplicity;
    view.source = this;
    view.slots = slots;
    view.state = &state;
    view.prompt = &prompt;
    places_.assign(1 + members_.size(), {});
    for (std::size_t i = 0; i < members_.size(); ++i)
      places_[1 + i] = {members_[i].column.data(), members_[i].state.get()};
    view.memory = places_.data();
    view.member_places = member_places_.data();
    if constexpr (requires { kvc::Budget(policy.budget); }) view.budget = policy.budget.at(id, seen, shape);
    return view;
  }

  /// Tells the policy, and its members, about the last `tokens` tokens, with the attention sums of their queries.
  void observe(kvc::Event event, std::size_t tokens, std::span<const float> scores = {}) {
    const std::size_t group = shape.group();
    std::vector<float> sums(group * positions.size());
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t g = 0; g < group; ++g) {
        const std::vector<double> row = attention(tokens - 1 - t, g);
        for (std::size_t slot = 0; slot < row.size(); ++slot)
          sums[g * row.size() + slot] += static_cast<float>(row[slot]);
      }
    kvc::Observation seen_pass;
    seen_pass.event = event;
    seen_pass.first_new = positions.size() - tokens;
    seen_pass.queries_count = tokens;
    seen_pass.attention = {sums.data(), group, positions.size()};
    seen_pass.scores = scores;
    kvc::Head<P> view = head(event);
    if constexpr (kvc::Observes<P>) policy.observe(view, seen_pass);
    for (std::size_t i = 0; i < members_.size(); ++i) {
      kvc::AnyHead any{view, &places_[1 + i]};
      any.view.budget = members_[i].stage->budget(id, seen, shape);
      if (members_[i].stage->verbs().observe) members_[i].stage->observe(any, seen_pass);
    }
  }

  /// What the policy plans after `event`, unless a test gives another budget than the policy's.
  kvc::Plan plan(kvc::Event event) {
    kvc::Head<P> view = head(event);
    return plan(view);
  }
  kvc::Plan plan(kvc::Head<P>& view) {
    kvc::Plan result(view);
    if (view.scores.empty()) score(view);
    if constexpr (kvc::Evicts<P>)
      policy.evict(view, result);
    else if (view.acts && view.size() > view.budget)
      kvc::keep_best(result, view.scores, view.budget);
    return result;
  }
  /// Shows the policy its own scores, as the core does where it acts. A policy that scores layers sees a layer of this head.
  void score(kvc::Head<P>& view) {
    if (!kvc::Scores<P> || !view.acts) return;
    scores_.resize(view.size());
    const std::span<float> scores = scores_;
    if constexpr (kvc::ScoresHead<P>) policy.score(view, scores);
    if constexpr (kvc::ScoresLayer<P>) policy.score_layer({&view, 1}, {&scores, 1});
    view.scores = scores;
  }
  /// The memory of the policy's member `index`, which is an M.
  template <class M>
  std::span<kvc::Slot<M>> member_slots(std::size_t index) {
    return {reinterpret_cast<kvc::Slot<M>*>(members_[index].column.data()), positions.size()};
  }

  /// Rewrites what the plan rewrites and keeps what it keeps.
  void apply(const kvc::Plan& plan) {
    for (std::size_t i = 0; i < plan.rewrites(); ++i) {
      const kvc::Plan::Rewrite rewrite = plan.rewrite_at(i);
      if (!rewrite.key.empty()) stored_keys[rewrite.slot].assign(rewrite.key.begin(), rewrite.key.end());
      if (!rewrite.value.empty()) stored_values[rewrite.slot].assign(rewrite.value.begin(), rewrite.value.end());
    }
    if (!plan.multiplicities().empty()) multiplicity.resize(positions.size(), 1);
    for (const auto& [slot, tokens] : plan.multiplicities()) multiplicity[slot] = tokens;
    std::size_t kept = 0;
    for (std::size_t slot = 0; slot < positions.size(); ++slot) {
      if (!plan.kept(slot)) continue;
      positions[kept] = positions[slot];
      slots[kept] = slots[slot];
      for (MemberMemory& member : members_) member.move(slot, kept);
      stored_keys[kept] = stored_keys[slot];
      stored_values[kept] = stored_values[slot];
      if (!multiplicity.empty()) multiplicity[kept] = multiplicity[slot];
      ++kept;
    }
    if (!multiplicity.empty()) multiplicity.resize(kept);
    positions.resize(kept);
    slots.resize(kept);
    for (MemberMemory& member : members_) member.column.resize(kept * member.stage->slot_bytes());
    stored_keys.resize(kept);
    stored_values.resize(kept);
  }

  /// A whole pass of the cache: append, observe, evict.
  void pass(kvc::Event event, std::size_t tokens) {
    append(tokens);
    observe(event, tokens);
    apply(plan(event));
  }

  /// Softmax over the slots that query `back` tokens before the newest sees, 0 beyond.
  std::vector<double> attention(std::size_t back, std::size_t member) const { return softmax(logits(back, member)); }

  kvc::ConstRows keys_from(std::size_t first) override {
    return view_of(stored_keys, first, shape.head_dim, flat_keys_);
  }
  kvc::ConstRows values_from(std::size_t first) override {
    return view_of(stored_values, first, shape.values_dim(), flat_values_);
  }
  void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) override {
    if (!key.empty()) std::ranges::copy(stored_keys[slot], key.begin());
    if (!value.empty()) std::ranges::copy(stored_values[slot], value.begin());
  }
  kvc::ConstRows unrotated_keys() override { return keys_from(0); }
  kvc::ConstRows products(kvc::ConstRows rows) override {
    products_.clear();
    for (std::size_t row = 0; row < rows.count; ++row)
      for (const std::vector<float>& key : stored_keys)
        products_.push_back(std::inner_product(key.begin(), key.end(), rows[row].begin(), 0.0f));
    return {products_.data(), rows.count, stored_keys.size()};
  }
  kvc::ConstRows window_queries(std::size_t window) override {
    const std::size_t count = std::min(window, queries.size());
    window_queries_.clear();
    for (std::size_t t = queries.size() - count; t < queries.size(); ++t)
      window_queries_.insert(window_queries_.end(), queries[t].begin(), queries[t].end());
    return {window_queries_.data(), count * shape.group(), shape.head_dim};
  }
  kvc::ReferenceQueries reference_queries() override { return {}; }
  kvc::ConstRows window_attention(std::size_t window) override { return window_rows(window, true); }
  kvc::ConstRows window_sums(std::size_t window) override {
    const kvc::ConstRows rows = window_rows(window, true);
    const std::size_t heads = rows.count == 0 ? 0 : shape.group();
    sums_.assign(heads * rows.dim, 0.0f);
    for (std::size_t row = 0; row < rows.count; ++row)
      for (std::size_t slot = 0; slot < rows.dim; ++slot) sums_[row % heads * rows.dim + slot] += rows[row][slot];
    return {sums_.data(), heads, rows.dim};
  }
  kvc::ConstRows window_logits(std::size_t window) override { return window_rows(window, false); }

 private:
  /// What the cache keeps about this head for one member.
  struct MemberMemory {
    const kvc::Stage* stage;
    std::vector<std::byte> column;
    std::shared_ptr<kvc::AnyState> state;  // copies of a head share it

    void append() {
      column.resize(column.size() + stage->slot_bytes());
      stage->default_slot(column.data() + column.size() - stage->slot_bytes());
    }
    void move(std::size_t from, std::size_t to) {
      const std::size_t bytes = stage->slot_bytes();
      if (bytes != 0) std::memmove(column.data() + to * bytes, column.data() + from * bytes, bytes);
    }
  };
  void add_members(const kvc::Stage& owner) {
    for (const kvc::Member& member : owner.members()) {
      member_places_.push_back(1 + members_.size());
      members_.push_back({&member.stage(), {}, member.stage().new_state()});
    }
  }

  std::vector<float> row(std::size_t dim) {
    std::normal_distribution<float> normal;
    std::vector<float> result(dim);
    for (float& x : result) x = normal(random_);
    return result;
  }

  std::vector<double> logits(std::size_t back, std::size_t member) const {
    const std::vector<float>& all = queries[queries.size() - 1 - back];
    const float* query = all.data() + member * shape.head_dim;
    const auto own = static_cast<kvc::Position>(seen - 1 - back);
    std::vector<double> result(positions.size(), -INFINITY);
    for (std::size_t slot = 0; slot < positions.size() && positions[slot] <= own; ++slot) {
      double sum = 0;
      for (std::size_t c = 0; c < shape.head_dim; ++c) sum += double(query[c]) * double(stored_keys[slot][c]);
      result[slot] = sum * double(shape.logit_scale());
    }
    return result;
  }

  static std::vector<double> softmax(std::vector<double> row) {
    double largest = -INFINITY, sum = 0;
    for (const double x : row) largest = std::max(largest, x);
    for (double& x : row) sum += x = std::exp(x - largest);
    for (double& x : row) x /= sum;
    return row;
  }

  kvc::ConstRows window_rows(std::size_t window, bool normalized) {
    const std::size_t count = std::min(window, queries.size()), group = shape.group();
    window_.clear();
    for (std::size_t t = 0; t < count; ++t)
      for (std::size_t g = 0; g < group; ++g)
        for (const double x : normalized ? attention(count - 1 - t, g) : logits(count - 1 - t, g))
          window_.push_back(static_cast<float>(x));
    return {window_.data(), count * group, positions.size()};
  }

  static kvc::ConstRows view_of(const std::vector<std::vector<float>>& rows, std::size_t first, std::size_t dim,
                                std::vector<float>& flat) {
    flat.clear();
    for (std::size_t i = first; i < rows.size(); ++i) flat.insert(flat.end(), rows[i].begin(), rows[i].end());
    return {flat.data(), rows.size() - first, dim};
  }

  std::shared_ptr<const kvc::StageOf<P>> stage_;
  std::vector<MemberMemory> members_;
  std::vector<kvc::StageMemory> places_;
  std::vector<std::size_t> member_places_;
  std::mt19937 random_;
  std::vector<float> flat_keys_, flat_values_, window_, sums_, products_, window_queries_, scores_;
};

/// Runs what a cache runs at the end of a prompt over the heads of one layer: allocate, then evict.
template <class P>
std::vector<std::size_t> end_prompt(std::vector<FakeHead<P>>& layer) {
  std::vector<kvc::Head<P>> heads;
  std::vector<std::size_t> budgets;
  for (FakeHead<P>& fake : layer) {
    heads.push_back(fake.head(kvc::Event::prompt_end));
    fake.score(heads.back());
    budgets.push_back(heads.back().budget);
  }
  layer[0].policy.allocate(kvc::Layer<P>(heads), budgets);
  for (std::size_t h = 0; h < layer.size(); ++h) {
    heads[h].budget = budgets[h];
    const kvc::Plan plan = layer[h].plan(heads[h]);
    layer[h].apply(plan);
  }
  return budgets;
}

/// 0, 1, … count - 1 shifted by `from`: what range of positions a policy should keep.
inline std::vector<kvc::Position> positions_between(kvc::Position from, kvc::Position end) {
  std::vector<kvc::Position> result;
  for (; from < end; ++from) result.push_back(from);
  return result;
}
inline std::vector<kvc::Position> joined(std::vector<kvc::Position> a, const std::vector<kvc::Position>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The code of the Error that `action` throws; "none" if it throws nothing.
template <class Action>
std::string error_text(Action action) {
  try {
    action();
  } catch (const kvc::Error& error) {
    return error.what();
  }
  return "none";
}

}  // namespace support
