#pragma once
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/policy/budget.hpp"
#include "kvc/policy/verbs.hpp"

namespace kvc::inline KVC_ABI {

/// No limit: what a head may hold under a policy without a Budget.
inline constexpr std::size_t Unlimited = std::numeric_limits<std::size_t>::max();

/// One head's State of one stage, type erased.
class AnyState {
 public:
  virtual ~AnyState() = default;
  virtual std::unique_ptr<AnyState> clone() const = 0;
  /// Bytes that the state holds: State::bytes() if it has that member, else its size.
  virtual std::size_t bytes() const = 0;
};

/// State<P> in a box.
template <class P>
struct StateBox final : AnyState {
  State<P> value{};
  std::unique_ptr<AnyState> clone() const override { return std::make_unique<StateBox>(*this); }
  std::size_t bytes() const override {
    if constexpr (requires { value.bytes(); }) return value.bytes();
    return std::is_same_v<State<P>, Nothing> ? 0 : sizeof(State<P>);
  }
};

namespace detail {
template <class P>
inline constexpr char TypeMark = 0;
}
/// Tells policy types apart without RTTI.
template <class P>
const void* type_key() {
  return &detail::TypeMark<P>;
}

/// A head with one stage's memory, type erased.
struct AnyHead {
  HeadView view;
  std::byte* slots = nullptr;
  AnyState* state = nullptr;
};

/// A policy with its type erased, once: the core runs a list of these, so that pipelines do not multiply code.
class Stage {
 public:
  /// Which verbs the policy implements.
  struct Verbs {
    bool observe = false, allocate = false, allocate_all = false, evict = false, merge = false, quantize = false,
         index = false, select = false;
  };

  virtual ~Stage() = default;
  /// type_key() of the policy.
  virtual const void* type() const = 0;
  virtual Verbs verbs() const = 0;
  virtual Needs needs() const = 0;
  virtual Positions positions() const = 0;
  virtual bool keeps_equal_slots() const = 0;
  virtual void validate(const CacheShape& shape) const = 0;
  virtual std::size_t slot_bytes() const = 0;
  virtual void default_slot(std::byte* slot) const = 0;
  virtual std::unique_ptr<AnyState> new_state() const = 0;
  virtual std::size_t budget(HeadId id, std::size_t seen, const CacheShape& shape) const = 0;

  virtual void observe(const AnyHead& head, const Observation& seen) const = 0;
  virtual void allocate(std::span<const AnyHead> heads, std::span<std::size_t> budgets) const = 0;
  virtual void allocate_all(std::span<const AnyHead> heads, std::span<std::size_t> budgets) const = 0;
  virtual void evict(const AnyHead& head, Plan& plan) const = 0;
  virtual bool pairs(std::size_t layer, const CacheShape& shape) const = 0;
  virtual void merge(const AnyHead& below, const AnyHead& here, PairPlan& plan) const = 0;
  virtual Streams quantize(HeadId id) const = 0;
  virtual void index(const AnyHead& head, std::size_t from) const = 0;
  virtual void select(const AnyHead& head, ConstRows queries, Selection& selection) const = 0;
};

/// Erases policy P.
template <class P>
class StageOf final : public Stage {
  static_assert(check_policy<P>());

 public:
  explicit StageOf(P policy) : policy_(std::move(policy)) {}
  const P& policy() const { return policy_; }

  const void* type() const override { return type_key<P>(); }
  Verbs verbs() const override {
    return {.observe = Observes<P>,
            .allocate = Allocates<P>,
            .allocate_all = AllocatesAll<P>,
            .evict = Shrinks<P>,
            .merge = MergesLayers<P>,
            .quantize = Quantizes<P>,
            .index = Indexes<P>,
            .select = Selects<P>};
  }
  Needs needs() const override {
    if constexpr (HasNeeds<P>) return policy_.needs();
    return {};
  }
  Positions positions() const override {
    if constexpr (requires { policy_.positions; }) return policy_.positions;
    return Positions::original;
  }
  bool keeps_equal_slots() const override { return equal_slots<P>; }
  void validate(const CacheShape& shape) const override {
    if constexpr (Validates<P>) policy_.validate(shape);
  }
  std::size_t slot_bytes() const override { return std::is_same_v<Slot<P>, Nothing> ? 0 : sizeof(Slot<P>); }
  void default_slot(std::byte* slot) const override {
    const Slot<P> fresh{};
    if (slot_bytes() != 0) std::memcpy(slot, &fresh, slot_bytes());
  }
  std::unique_ptr<AnyState> new_state() const override { return std::make_unique<StateBox<P>>(); }
  std::size_t budget(HeadId id, std::size_t seen, const CacheShape& shape) const override {
    if constexpr (requires { Budget(policy_.budget); }) return Budget(policy_.budget).at(id, seen, shape);
    return Unlimited;
  }

  void observe(const AnyHead& any, const Observation& seen) const override {
    if constexpr (Observes<P>) {
      Head<P> head = typed(any);
      policy_.observe(head, seen);
    }
  }
  void allocate(std::span<const AnyHead> heads, std::span<std::size_t> budgets) const override {
    if constexpr (Allocates<P>) {
      policy_.allocate(typed(heads), budgets);
    }
  }
  void allocate_all(std::span<const AnyHead> heads, std::span<std::size_t> budgets) const override {
    if constexpr (AllocatesAll<P>) {
      policy_.allocate_all(typed(heads), budgets);
    }
  }
  void evict(const AnyHead& any, Plan& plan) const override {
    if constexpr (Evicts<P>) {
      Head<P> head = typed(any);
      policy_.evict(head, plan);
    } else if constexpr (Scores<P>) {
      if (any.view.event != Event::prompt_end || any.view.size() <= any.view.budget) return;
      const Head<P> head = typed(any);
      const std::span<float> scores = plan.scratch(head.size());
      policy_.score(head, scores);
      plan.top(scores, head.budget);
    }
  }
  bool pairs(std::size_t layer, const CacheShape& shape) const override {
    if constexpr (MergesLayers<P>) return policy_.pairs(layer, shape);
    return false;
  }
  void merge(const AnyHead& below, const AnyHead& here, PairPlan& plan) const override {
    if constexpr (MergesLayers<P>) policy_.merge(typed(below), typed(here), plan);
  }
  Streams quantize(HeadId id) const override {
    if constexpr (Quantizes<P>) return policy_.quantize(id);
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
  static Head<P> typed(const AnyHead& any) {
    Head<P> head;
    static_cast<HeadView&>(head) = any.view;
    if constexpr (!std::is_same_v<Slot<P>, Nothing>)
      head.slots = {reinterpret_cast<Slot<P>*>(any.slots), any.view.size()};
    if (any.state) head.state = &static_cast<StateBox<P>*>(any.state)->value;
    return head;
  }
  /// Valid until the thread's next call: allocate() runs after every token and must not ask for memory.
  static std::span<Head<P>> typed(std::span<const AnyHead> heads) {
    static thread_local std::vector<Head<P>> result;
    result.clear();
    for (const AnyHead& head : heads) result.push_back(typed(head));
    return result;
  }

  P policy_;
};

/// The stages of a policy, in order: what the core runs.
using Stages = std::vector<std::shared_ptr<const Stage>>;

}  // namespace kvc
