#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/policy/any_state.hpp"
#include "kvc/policy/budget.hpp"
#include "kvc/policy/fingerprint.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/scoring.hpp"
#include "kvc/policy/type_name.hpp"
#include "kvc/policy/verbs.hpp"
#include "kvc/workspace.hpp"

namespace kvc::inline KVC_ABI {

/// No limit: what a head may hold under a policy without a Budget.
inline constexpr std::size_t Unlimited = std::numeric_limits<std::size_t>::max();

/// A policy with its type erased, once: the core runs a list of these, so that pipelines do not multiply code.
class Stage {
 public:
  /// Which verbs the policy implements.
  struct Verbs {
    bool observe = false, score = false, score_layer = false, score_all = false, allocate = false, cascade = false,
         allocate_all = false, evict = false, merge = false, quantize = false, fit = false, index = false,
         select = false;

    bool scores() const { return score || score_layer || score_all; }
    bool allocates() const { return allocate || cascade || allocate_all; }
    /// Whether the stage waits for the last layer of the model.
    bool waits() const { return score_all || cascade || allocate_all; }
    /// Whether the stage looks at more than one head at a time.
    bool joint() const { return waits() || score_layer || allocate || merge; }
  };

  virtual ~Stage() = default;
  /// type_of() the policy.
  virtual TypeName type() const = 0;
  virtual Verbs verbs() const = 0;
  virtual Needs needs() const = 0;
  virtual When when() const = 0;
  virtual Positions positions() const = 0;
  virtual EqualSlots keeps_equal_slots() const = 0;
  virtual EqualSlots wants_equal_slots() const = 0;
  /// Whether the stage takes part in this layer.
  virtual bool works_on(std::size_t layer) const = 0;
  virtual std::span<const Member> members() const = 0;
  virtual void validate(const CacheShape& shape) const = 0;
  virtual std::size_t slot_bytes() const = 0;
  virtual void default_slot(std::byte* slot) const = 0;
  virtual std::unique_ptr<AnyState> new_state() const = 0;
  /// Saves or loads `count` slots: the fields that they declare, or else their bytes.
  virtual void exchange_slots(std::byte* slots, std::size_t count, Fields& fields) const = 0;
  /// Whether the policy can work with memory of a head that was loaded.
  virtual bool accepts(const AnyHead& head) const = 0;
  /// A number of the parameters that the policy declares: with others it is another.
  virtual std::uint64_t fingerprint() const = 0;
  virtual std::size_t budget(HeadId id, std::size_t seen, const CacheShape& shape) const = 0;
  /// The same policy with another Budget; null if it has none.
  virtual std::shared_ptr<const Stage> with_budget(const Budget& budget) const = 0;

  virtual void observe(const AnyHead& head, const Observation& seen) const = 0;
  virtual void score(const AnyHead& head, std::span<float> scores) const = 0;
  virtual void score_layer(std::span<const AnyHead> heads, ScoreSpans scores, Workspace& workspace) const = 0;
  virtual void score_all(std::span<const AnyHead> heads, ScoreSpans scores, Workspace& workspace) const = 0;
  virtual void allocate(std::span<const AnyHead> heads, std::span<std::size_t> budgets, Workspace& workspace) const = 0;
  virtual void cascade(std::span<const AnyHead> heads, std::span<std::size_t> budgets, Workspace& workspace) const = 0;
  virtual void allocate_all(std::span<const AnyHead> heads, std::span<std::size_t> budgets,
                            Workspace& workspace) const = 0;
  virtual void evict(const AnyHead& head, Plan& plan) const = 0;
  virtual bool pairs(std::size_t layer, const CacheShape& shape) const = 0;
  virtual void merge(const AnyHead& below, const AnyHead& here, PairPlan& plan) const = 0;
  virtual Streams quantize(HeadId id, const CacheShape& shape) const = 0;
  virtual Streams fit(const AnyHead& head) const = 0;
  virtual void index(const AnyHead& head, std::size_t from) const = 0;
  virtual void select(const AnyHead& head, ConstRows queries, Selection& selection) const = 0;
};

/// How many stages a stage stands for in the order of StageMemory: itself, and its members with theirs.
std::size_t stage_count(const Stage& stage);

/// A policy inside another one: any policy converts to it, also one chosen by name. It has Slots and a State of its own, which
/// the core keeps; it observes by itself, with what its own Needs ask for. Its other verbs are for its owner to call.
class Member {
 public:
  /// No policy.
  Member() = default;
  template <class P>
  requires(!std::is_same_v<P, Member> && Policy<P>)
      Member(P policy);  // NOLINT: implicit, so that members are written plainly
  explicit Member(std::shared_ptr<const Stage> stage) : stage_(std::move(stage)) {}

  explicit operator bool() const { return stage_ != nullptr; }
  const Stage& stage() const { return *stage_; }
  const std::shared_ptr<const Stage>& shared() const { return stage_; }
  void add_to(Fingerprint& all) const {
    all.add(stage_ != nullptr);
    if (!stage_) return;
    all.add(stage_->fingerprint());
    all.add(stage_->slot_bytes());
  }
  /// The same policy with another Budget, if it has one.
  Member with_budget(const Budget& budget) const {
    auto changed = stage_->with_budget(budget);
    return changed ? Member(std::move(changed)) : *this;
  }
  /// The member's scores of heads that Head::member made, layer-major: whole layers where it scores layers, all heads where it
  /// scores them all.
  void score(std::span<const AnyHead> heads, ScoreSpans scores) const;
  void score(const AnyHead& head, std::span<float> scores) const { score({&head, 1}, {&scores, 1}); }

 private:
  std::shared_ptr<const Stage> stage_;
};

/// Erases policy P.
template <class P>
class StageOf final : public Stage {
  static_assert(check_policy<P>());

 public:
  explicit StageOf(P policy) : policy_(std::move(policy)) {
    std::size_t place = 1;
    for (const Member& member : members()) {
      member_places_.push_back(place);
      if (member) place += stage_count(member.stage());
    }
  }
  StageOf(const StageOf&) = delete;
  const P& policy() const { return policy_; }

  TypeName type() const override { return type_of<P>(); }
  Verbs verbs() const override {
    return {.observe = Observes<P>,
            .score = ScoresHead<P>,
            .score_layer = ScoresLayer<P>,
            .score_all = ScoresAll<P>,
            .allocate = Allocates<P>,
            .cascade = Cascades<P>,
            .allocate_all = AllocatesAll<P>,
            .evict = Shrinks<P>,
            .merge = MergesLayers<P>,
            .quantize = Quantizes<P>,
            .fit = Fits<P>,
            .index = Indexes<P>,
            .select = Selects<P>};
  }
  Needs needs() const override {
    if constexpr (HasNeeds<P>) return policy_.needs();
    return {};
  }
  When when() const override {
    if constexpr (requires { requires std::convertible_to<decltype(policy_.when), When>; }) return policy_.when;
    return When::prompt_end;
  }
  Positions positions() const override {
    if constexpr (requires { policy_.positions; }) return policy_.positions;
    return Positions::original;
  }
  EqualSlots keeps_equal_slots() const override {
    if constexpr (requires { Budget(policy_.budget); }) {  // other budgets, other slots
      const Budget budget(policy_.budget);
      if (budget.is_table()) return std::min(equal_slots<P>, EqualSlots::none);
      if (budget.is_pyramid()) return std::min(equal_slots<P>, EqualSlots::layer);
    }
    return equal_slots<P>;
  }
  EqualSlots wants_equal_slots() const override {
    EqualSlots wanted = needs_equal_slots<P>;
    for (const Member& member : members())
      if (member) wanted = std::max(wanted, member.stage().wants_equal_slots());
    return wanted;
  }
  bool works_on(std::size_t) const override { return true; }
  std::span<const Member> members() const override {
    if constexpr (HasMembers<P>) return policy_.members();
    return {};
  }
  void validate(const CacheShape& shape) const override {
    if constexpr (Validates<P>) policy_.validate(shape);
  }
  std::size_t slot_bytes() const override { return std::is_same_v<Slot<P>, Nothing> ? 0 : sizeof(Slot<P>); }
  void default_slot(std::byte* slot) const override {
    const Slot<P> fresh{};
    if (slot_bytes() != 0) std::memcpy(slot, &fresh, slot_bytes());
  }
  std::unique_ptr<AnyState> new_state() const override { return std::make_unique<StateBox<P>>(); }
  void exchange_slots(std::byte* slots, std::size_t count, Fields& fields) const override {
    if constexpr (HasFields<Slot<P>>)
      for (std::size_t i = 0; i < count; ++i) detail::exchange(fields, reinterpret_cast<Slot<P>*>(slots)[i]);
    else if (slot_bytes() != 0 && count != 0)
      fields.move(slots, count * slot_bytes());
  }
  bool accepts(const AnyHead& any) const override {
    if constexpr (Accepts<P>) return policy_.accepts(typed(any));
    return true;
  }
  std::uint64_t fingerprint() const override {
    Fingerprint all;
    if constexpr (HasParameters<P>)
      P::parameters()([&](const auto& parameter) {
        if constexpr (Fingerprinted<typename std::remove_cvref_t<decltype(parameter)>::Value>)
          if (parameter.member) all.add(policy_.*parameter.member);
      });
    return all.value();
  }
  std::size_t budget(HeadId id, std::size_t seen, const CacheShape& shape) const override {
    if constexpr (requires { Budget(policy_.budget); }) return Budget(policy_.budget).at(id, seen, shape);
    return Unlimited;
  }
  std::shared_ptr<const Stage> with_budget(const Budget& budget) const override {
    if constexpr (requires(P policy) { policy.budget = budget; }) {
      P changed = policy_;
      changed.budget = budget;
      return std::make_shared<const StageOf>(std::move(changed));
    }
    return nullptr;
  }

  void observe(const AnyHead& any, const Observation& seen) const override {
    if constexpr (Observes<P>) {
      Head<P> head = typed(any);
      policy_.observe(head, seen);
    }
  }
  void score(const AnyHead& any, std::span<float> scores) const override {
    if constexpr (ScoresHead<P>) policy_.score(typed(any), scores);
  }
  void score_layer(std::span<const AnyHead> heads, ScoreSpans scores, Workspace& workspace) const override {
    if constexpr (ScoresLayer<P>) {
      Workspace::Frame frame(workspace);
      policy_.score_layer(typed(heads, frame), scores);
    }
  }
  void score_all(std::span<const AnyHead> heads, ScoreSpans scores, Workspace& workspace) const override {
    if constexpr (ScoresAll<P>) {
      Workspace::Frame frame(workspace);
      policy_.score_all(typed(heads, frame), scores);
    }
  }
  void allocate(std::span<const AnyHead> heads, std::span<std::size_t> budgets, Workspace& workspace) const override {
    if constexpr (Allocates<P>) {
      Workspace::Frame frame(workspace);
      policy_.allocate(typed(heads, frame), budgets);
    }
  }
  void cascade(std::span<const AnyHead> heads, std::span<std::size_t> budgets, Workspace& workspace) const override {
    if constexpr (Cascades<P>) {
      Workspace::Frame frame(workspace);
      policy_.cascade(typed(heads, frame), budgets);
    }
  }
  void allocate_all(std::span<const AnyHead> heads, std::span<std::size_t> budgets,
                    Workspace& workspace) const override {
    if constexpr (AllocatesAll<P>) {
      Workspace::Frame frame(workspace);
      policy_.allocate_all(typed(heads, frame), budgets);
    }
  }
  void evict(const AnyHead& any, Plan& plan) const override {
    if constexpr (Evicts<P>) {
      Head<P> head = typed(any);
      policy_.evict(head, plan);
    } else if constexpr (Scores<P>) {
      if (any.view.acts && any.view.size() > any.view.budget) keep_best(plan, any.view.scores, any.view.budget);
    }
  }
  bool pairs(std::size_t layer, const CacheShape& shape) const override {
    if constexpr (MergesLayers<P>) return policy_.pairs(layer, shape);
    return false;
  }
  void merge(const AnyHead& below, const AnyHead& here, PairPlan& plan) const override {
    if constexpr (MergesLayers<P>) policy_.merge(typed(below), typed(here), plan);
  }
  Streams quantize(HeadId id, const CacheShape& shape) const override {
    if constexpr (Quantizes<P>) return policy_.quantize(id, shape);
    return {};
  }
  Streams fit(const AnyHead& any) const override {
    if constexpr (Fits<P>) return policy_.fit(typed(any));
    return {};
  }
  void index(const AnyHead& any, std::size_t from) const override {
    if constexpr (Indexes<P>) {
      Head<P> head = typed(any);
      policy_.index(head, from);
    }
  }
  void select(const AnyHead& any, ConstRows queries, Selection& selection) const override {
    if constexpr (Selects<P>) policy_.select(typed(any), queries, selection);
  }

 private:
  Head<P> typed(const AnyHead& any) const {
    Head<P> head;
    static_cast<HeadView&>(head) = any.view;
    if constexpr (!std::is_same_v<Slot<P>, Nothing>)
      head.slots = {reinterpret_cast<Slot<P>*>(any.memory->slots), any.view.size()};
    auto& box = *static_cast<StateBox<P>*>(any.memory->state);
    head.state = &box.value;
    head.prompt = box.prompt.get();
    head.memory = any.memory;
    head.member_places = member_places_.data();
    return head;
  }
  std::span<Head<P>> typed(std::span<const AnyHead> heads, Workspace::Frame& frame) const {
    const std::span<Head<P>> result = frame.take<Head<P>>(heads.size());
    for (std::size_t i = 0; i < heads.size(); ++i) result[i] = typed(heads[i]);
    return result;
  }

  P policy_;
  std::vector<std::size_t> member_places_;
};

template <class P>
requires(!std::is_same_v<P, Member> && Policy<P>) Member::Member(P policy)
    : stage_(std::make_shared<const StageOf<P>>(std::move(policy))) {}

inline std::size_t stage_count(const Stage& stage) {
  std::size_t count = 1;
  for (const Member& member : stage.members())
    if (member) count += stage_count(member.stage());
  return count;
}

inline void Member::score(std::span<const AnyHead> heads, ScoreSpans scores) const {
  const Stage::Verbs verbs = stage_->verbs();
  if (!verbs.scores()) fail(ErrorCode::incompatible, {"Member: ", stage_->type().text, " does not score"});
  if (heads.empty()) return;
  if (verbs.score) return heads[0].view.source->score_heads(*stage_, heads, scores);
  Workspace workspace;
  if (verbs.score_all) return stage_->score_all(heads, scores, workspace);
  for (std::size_t begin = 0, end = 0; begin < heads.size(); begin = end) {
    for (end = begin; end < heads.size() && heads[end].view.id.layer == heads[begin].view.id.layer; ++end) {
    }
    stage_->score_layer(heads.subspan(begin, end - begin), scores.subspan(begin, end - begin), workspace);
  }
}
/// Throws Error(incompatible), with `name` as in "AdaKV: base", unless `member` is a policy at original positions that scores, in
/// sight of no more than `most`; and whatever the member refuses itself with this budget.
inline void require_scoring(std::string_view name, const Member& member, Scope most, const Budget& budget,
                            const CacheShape& shape) {
  const Stage::Verbs verbs = member ? member.stage().verbs() : Stage::Verbs();
  if (!(verbs.score || (verbs.score_layer && most != Scope::head) || (verbs.score_all && most == Scope::cache)))
    fail(ErrorCode::incompatible, {name, " must be a policy that scores the slots of a head",
                                   most == Scope::head    ? ""
                                   : most == Scope::layer ? " or of a layer"
                                                          : ", of a layer or of all layers"});
  if (member.stage().positions() == Positions::in_cache)
    fail(ErrorCode::incompatible, {name, " must use original positions"});
  member.with_budget(budget).stage().validate(shape);
}
inline void HeadSource::score_heads(const Stage& member, std::span<const AnyHead> heads, ScoreSpans scores) {
  for (std::size_t i = 0; i < heads.size(); ++i)
    if (!scores[i].empty()) member.score(heads[i], scores[i]);
}

/// Whether the stage or one of its members wants to observe probes: an engine that cares for it keeps the prompt open, probes,
/// and calls compress() (see CacheCore::probe).
inline bool needs_probe(const Stage& stage) {
  if (stage.needs().probe != Feed::none) return true;
  for (const Member& member : stage.members())
    if (member && needs_probe(member.stage())) return true;
  return false;
}

/// The stages of a policy, in order: what the core runs.
using Stages = std::vector<std::shared_ptr<const Stage>>;

}  // namespace kvc::inline KVC_ABI
