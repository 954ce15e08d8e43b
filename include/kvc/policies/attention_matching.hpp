#pragma once
#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/half.hpp"
#include "kvc/matrix.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/reference_rows.hpp"

namespace kvc::inline KVC_ABI {

/// Attention Matching (Zweiger et al., "Fast KV Compaction via Attention Matching", arXiv 2602.16284), in the form that the
/// authors call AM-HighestAttnKeys: once, after the prompt, the tokens to which reference queries attend most, by the root of the
/// mean square; then how many tokens each stands for, by least squares against the sums of exponentials of all tokens, held
/// within bounds and corrected by projected gradients; then their values, by least squares against the outputs of all tokens.
/// Authors' code: adamzweiger/compaction, whose `best` configurations are our defaults. Reference queries are those of probes,
/// theirs of a repetition; without a probe, the prompt's own as they came, theirs of "context-prefill". Differs: queries come
/// from a model whose lower layers are still whole (theirs, "on-policy", compacts layer after layer); a head gets the plain budget
/// (theirs measures shares of heads beforehand); numbers of tokens are rounded to half precision before values are fitted to
/// them, as they are stored; and where least squares would give values more than `largest` times as large as any there was, which no
/// format holds for long, a ridge keeps them near those. Refit is this method over quantized keys, with ridges in all
/// its fits and narrower bounds. Needs Eigen.
struct AttentionMatching {
  Budget budget = 1024;
  std::size_t rows = 1024;
  /// The authors' bounds, e^-3 and e^3.
  double least = 0.049787068, most = 20.085537;
  std::size_t steps = 2;
  bool multiplicities = true, values = true;
  double largest = 16;

  static constexpr PolicyName name{"attention_matching",
                                   "Keeps the most attended tokens, fitted to the attention of all."};
  static constexpr auto parameters() {
    return list(
        parameter("budget", &AttentionMatching::budget, "Slots that a head keeps when a prompt ends."),
        parameter("rows", &AttentionMatching::rows, "About so many tokens' queries are matched."),
        parameter("least", &AttentionMatching::least, "The fewest tokens that a kept one may stand for."),
        parameter("most", &AttentionMatching::most, "The most tokens that a kept one may stand for."),
        parameter("steps", &AttentionMatching::steps, "Projected gradients after the numbers were held within bounds."),
        parameter("multiplicities", &AttentionMatching::multiplicities, "Whether kept tokens stand for others."),
        parameter("values", &AttentionMatching::values, "Whether values are fitted."),
        parameter("largest", &AttentionMatching::largest,
                  "So many times the largest number of a head's values, and a ridge keeps them near those."));
  }

  struct PromptState {
    std::size_t tokens = 0;  ///< of the prompt, before the first probe
    bool probed = false;
  };
  Needs needs() const { return {.query_stride = 2, .query_most = rows + rows / 2}; }
  void observe(Head<AttentionMatching>& head, const Observation& seen) const {
    if (!head.prompt) return;
    head.prompt->probed = head.prompt->probed || seen.event == Event::probe;
    if (!head.prompt->probed) head.prompt->tokens += seen.queries_count;
  }

  /// The root of the mean square of what the reference queries pay a token.
  void score(const Head<AttentionMatching>& head, std::span<float> scores) const {
    std::vector<double> squares(scores.size());
    const std::vector<float> queries = reference_queries(head);
    for_each_block(head, queries, [&](std::size_t, ConstRows exponentials, std::span<const float> sums) {
      for (std::size_t row = 0; row < sums.size(); ++row)
        for (std::size_t slot = 0; slot < squares.size(); ++slot)
          squares[slot] += std::pow(double(exponentials[row][slot] / sums[row]), 2);
    });
    const auto count = double(queries.size() / head.shape->head_dim);
    for (std::size_t slot = 0; slot < scores.size(); ++slot)
      scores[slot] = static_cast<float>(std::sqrt(squares[slot] / count));
  }
  void evict(Head<AttentionMatching>& head, Plan& plan) const {
    if (!head.acts || head.size() <= head.budget) return;
    keep_best(plan, head.scores, head.budget);
    match(head, plan);
  }

  /// Throws Error if bounds exclude a single token, or if nothing would stay.
  void validate(const CacheShape& shape) const {
    require_between("AttentionMatching: rows", rows, 1);
    require_between("AttentionMatching: steps", steps, 0);
    budget.require(1, "AttentionMatching: one slot", shape);
    if (!(largest >= 1))
      fail(ErrorCode::invalid_argument, {"AttentionMatching: largest (", largest, ") must be at least 1"});
    if (!(least > 0) || !(least <= 1) || !(most >= 1) || !(most < 1e4))
      fail(ErrorCode::invalid_argument,
           {"AttentionMatching: least (", least, ") must lie in (0, 1] and most (", most, ") in [1, 10000)"});
  }

 private:
  using Matrix = Eigen::MatrixXd;
  using Vector = Eigen::VectorXd;

  /// The scaled queries of about `rows` tokens: of probes, or of the prompt if there was none. Throws Error(missing_feed)
  /// where none is kept.
  std::vector<float> reference_queries(const Head<AttentionMatching>& head) const {
    const ReferenceQueries kept = head.reference_queries();
    std::size_t first = 0;
    const std::size_t end = kept.positions.size();
    if (head.prompt && head.prompt->probed)
      while (first < end && kept.numbers[first] < head.prompt->tokens) ++first;
    if (!head.prompt || first == end)
      fail(ErrorCode::missing_feed,
           "AttentionMatching: no query of a prompt is kept; it acts at the end of a prompt only");
    std::vector<float> queries;
    const std::size_t step = std::max<std::size_t>(1, (end - first) / rows);
    for (std::size_t token = first; token < end; token += step) {
      const std::vector<float> scaled = detail::scaled_queries(kept, token, 1, *head.shape);
      queries.insert(queries.end(), scaled.begin(), scaled.end());
    }
    return queries;
  }

  /// Calls visit(first row, exponentials of the logits less the largest [rows, slots], their sums [rows]) for the queries, some
  /// at a time, and all slots.
  template <class Visit>
  static void for_each_block(const HeadView& head, const std::vector<float>& queries, Visit visit) {
    constexpr std::size_t AtOnce = 192;
    const std::size_t dim = head.shape->head_dim, count = queries.size() / dim;
    std::vector<float> memory(std::min(AtOnce, count) * head.size()), sums(AtOnce);
    for (std::size_t first = 0; first < count; first += AtOnce) {
      const Rows<float> logits(memory.data(), std::min(AtOnce, count - first), head.size());
      multiply_transposed({queries.data() + first * dim, logits.count, dim}, head.keys(), logits);
      detail::to_logits(logits, *head.shape, head.multiplicity);
      for (std::size_t row = 0; row < logits.count; ++row) log_sum_exp(logits[row], sums[row]);
      visit(first, ConstRows(logits), std::span<const float>(sums).first(logits.count));
    }
  }

  void match(const Head<AttentionMatching>& head, Plan& plan) const {
    std::vector<std::size_t> kept;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (plan.kept(slot)) kept.push_back(slot);
    const std::vector<float> queries = reference_queries(head);
    const auto count = Eigen::Index(queries.size() / head.shape->head_dim), slots = Eigen::Index(kept.size());
    Matrix shares(count, slots);
    Vector sums(count);
    std::vector<float> found(std::size_t(count) * head.shape->values_dim());
    const Rows<float> outputs(found.data(), std::size_t(count), head.shape->values_dim());
    for_each_block(head, queries, [&](std::size_t first, ConstRows exponentials, std::span<const float> of_rows) {
      multiply(exponentials, head.values(), outputs.subrows(first, of_rows.size()));
      for (std::size_t row = 0; row < of_rows.size(); ++row) {
        const auto at = Eigen::Index(first + row);
        sums[at] = double(of_rows[row]);
        for (Eigen::Index i = 0; i < slots; ++i) shares(at, i) = double(exponentials[row][kept[std::size_t(i)]]);
        for (float& x : outputs[first + row]) x /= of_rows[row];
      }
    });

    Vector tokens = multiplicities ? fit_tokens(shares, sums) : Vector(Vector::Ones(slots));
    for (double& number : tokens) number = double(from_half(to_half(static_cast<float>(number))));
    const Matrix wanted = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
                              found.data(), count, Eigen::Index(outputs.dim))
                              .cast<double>();
    shares = shares * tokens.asDiagonal();
    shares = Matrix(shares.rowwise().sum().cwiseInverse().asDiagonal() * shares);
    const Matrix fitted = values ? fit_values(shares, wanted, given_values(head, kept)) : Matrix();
    if (!tokens.allFinite() || !fitted.allFinite()) return;  // what is kept then stays as it was
    for (Eigen::Index i = 0; i < slots; ++i) {
      const std::size_t slot = kept[std::size_t(i)];
      const float stood_for = head.multiplicity.empty() ? 1.0f : head.multiplicity[slot];
      if (multiplicities) plan.multiplicity(slot, static_cast<float>(tokens[i]) * stood_for);
      if (!values) continue;
      const std::span<float> value = plan.value(slot);
      for (std::size_t c = 0; c < value.size(); ++c)
        value[c] = std::clamp(static_cast<float>(fitted(i, Eigen::Index(c))), -head.value_limit, head.value_limit);
    }
  }

  /// Numbers within the bounds for which `exponentials` times them come near `sums`: least squares, held within the bounds,
  /// then `steps` projected gradients of the length that the largest singular value allows.
  Vector fit_tokens(const Matrix& exponentials, const Vector& sums) const {
    const auto within = [&](const Vector& numbers) { return Vector(numbers.cwiseMax(least).cwiseMin(most)); };
    Vector numbers = within(least_squares(exponentials, sums));
    if (steps == 0) return numbers;
    Vector direction = Vector::Ones(numbers.size()).normalized();
    double length = 1;
    for (int round = 0; round < 4; ++round) {
      direction = exponentials.transpose() * (exponentials * direction);
      length = std::max(direction.norm(), 1e-6);
      direction /= length;
    }
    for (std::size_t step = 0; step < steps; ++step)
      numbers = within(numbers - exponentials.transpose() * (exponentials * numbers - sums) / length);
    return numbers;
  }

  static Matrix given_values(const HeadView& head, const std::vector<std::size_t>& kept) {
    const ConstRows all = head.values();
    Matrix given(Eigen::Index(kept.size()), Eigen::Index(all.dim));
    for (std::size_t i = 0; i < kept.size(); ++i)
      for (std::size_t c = 0; c < all.dim; ++c) given(Eigen::Index(i), Eigen::Index(c)) = double(all[kept[i]][c]);
    return given;
  }
  /// Values for which `shares` times them come near `wanted`: least squares, and where tokens are so alike that these are many times
  /// as large as those given, least squares with a ridge towards those.
  Matrix fit_values(const Matrix& shares, const Matrix& wanted, const Matrix& given) const {
    constexpr double Ridge = 0.03;
    const Matrix fitted = least_squares(shares, wanted);
    if (fitted.allFinite() && fitted.cwiseAbs().maxCoeff() <= largest * given.cwiseAbs().maxCoeff()) return fitted;
    Matrix gram = shares.transpose() * shares;
    gram.diagonal().array() += Ridge * gram.diagonal().mean() + 1e-12;
    return given + gram.llt().solve(shares.transpose() * (wanted - shares * given));
  }

  /// The solution with the least squares of errors; where there are several, the shortest.
  static Matrix least_squares(const Matrix& system, const Matrix& wanted) {
    if (system.rows() >= system.cols()) {
      const Eigen::HouseholderQR<Matrix> factors(system);
      const Vector diagonal = factors.matrixQR().diagonal().cwiseAbs();
      if (diagonal.minCoeff() > 1e-6 * diagonal.maxCoeff()) return factors.solve(wanted);
    }
    return Eigen::CompleteOrthogonalDecomposition<Matrix>(system).solve(wanted);
  }
};

}  // namespace kvc::inline KVC_ABI
