#pragma once
#include <Eigen/Cholesky>

#include "kvc/eigen.hpp"
#include "kvc/policies/snapkv.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"

namespace literature {
using namespace kvc;

/// Attention Matching (Zweiger et al., "Fast KV Compaction via Attention Matching", arXiv 2602.16284) over the slots
/// that another policy chooses: those kept get multiplicities and values such that the prompt's last queries find the
/// normaliser and the output that all slots gave them, by least squares with a ridge.
struct AttentionMatching {
  Member base = SnapKV{};
  Budget budget = 1024;
  std::size_t probes = 64;
  double ridge = 0.05;
  bool weights = true, values = true;

  static constexpr PolicyName name{"attention_matching",
                                   "Fits what another policy keeps to the attention of all tokens."};
  static constexpr auto parameters() {
    return list(parameter("base", &AttentionMatching::base, "The policy that chooses; its own budget does not count."),
                parameter("budget", &AttentionMatching::budget, "Slots that a head keeps when a prompt ends."),
                parameter("probes", &AttentionMatching::probes, "So many newest queries are matched."),
                parameter("ridge", &AttentionMatching::ridge, "How much a change costs against a mismatch."),
                parameter("weights", &AttentionMatching::weights, "Whether kept tokens stand for others."),
                parameter("values", &AttentionMatching::values, "Whether their values change."));
  }
  std::span<const Member> members() const { return {&base, 1}; }
  Needs needs() const { return {.query_window = probes}; }

  void score(const Head<AttentionMatching>& head, std::span<float> scores) const { base.score(head.member(0), scores); }
  void evict(Head<AttentionMatching>& head, Plan& plan) const {
    if (!head.acts || head.size() <= head.budget) return;
    keep_best(plan, head.scores, head.budget);
    refit(head, plan);
  }
  void validate(const CacheShape& shape) const {
    require_between("AttentionMatching: probes", probes, 1);
    if (!base || !base.stage().verbs().score)
      fail(ErrorCode::incompatible, "AttentionMatching: base must be a policy that scores the slots of a head");
    base.with_budget(budget).stage().validate(shape);
  }

 private:
  using Matrix = Eigen::MatrixXf;
  using Vector = Eigen::VectorXf;

  void refit(const Head<AttentionMatching>& head, Plan& plan) const {
    std::vector<Eigen::Index> kept;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (plan.kept(slot)) kept.push_back(static_cast<Eigen::Index>(slot));
    const Matrix attention = as_eigen(head.window_attention(probes)), all_values = as_eigen(head.values());
    Matrix share = attention(Eigen::all, kept);  // of the normaliser of all slots [queries, kept]
    if (weights) {
      const Vector tokens = fit_tokens(share);
      for (Eigen::Index j = 0; j < tokens.size(); ++j) plan.multiplicity(std::size_t(kept[std::size_t(j)]), tokens[j]);
      share = share * tokens.asDiagonal();
    }
    if (!values) return;
    share = share.rowwise().sum().cwiseInverse().asDiagonal() * share;
    const Matrix missing = attention * all_values - share * all_values(kept, Eigen::all);
    Matrix gram = share * share.transpose();
    gram.diagonal().array() += static_cast<float>(ridge) * gram.trace() / float(gram.rows()) + 1e-12f;
    const Matrix change = share.transpose() * gram.ldlt().solve(missing);
    for (std::size_t j = 0; j < kept.size(); ++j) {
      const std::span<float> value = plan.value(std::size_t(kept[j]));
      for (std::size_t c = 0; c < value.size(); ++c) value[c] += change(Eigen::Index(j), Eigen::Index(c));
    }
  }
  /// Positive numbers of tokens near 1 for which every row of `share` adds up to 1, by coordinate descent.
  Vector fit_tokens(const Matrix& share) const {
    Vector tokens = Vector::Ones(share.cols()), gap = Vector::Ones(share.rows()) - share.rowwise().sum();
    const Vector squares = share.colwise().squaredNorm().transpose();
    const float stiffness = static_cast<float>(ridge) * squares.mean();
    for (int round = 0; round < 30; ++round)
      for (Eigen::Index j = 0; j < tokens.size(); ++j) {
        const float slope = share.col(j).dot(gap) + stiffness * (1 - tokens[j]);
        const float next = std::max(1e-3f, tokens[j] + slope / (squares[j] + stiffness + 1e-30f));
        gap -= (next - tokens[j]) * share.col(j);
        tokens[j] = next;
      }
    return tokens;
  }
};

}  // namespace literature
