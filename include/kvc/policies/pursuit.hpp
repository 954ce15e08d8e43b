#pragma once
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "kvc/policy/policy.hpp"
#include "kvc/policy/reference_rows.hpp"

namespace kvc::inline KVC_ABI {

/// Scores a token by what it adds when tokens are chosen one after the other so that attention over the chosen ones gives the
/// outputs of the whole head: forward selection by orthogonal least squares (Chen, Billings, Luo, "Orthogonal least squares
/// methods and their application to non-linear system identification", 1989), which Attention Matching (arXiv 2602.16284) does
/// with orthogonal matching pursuit. A row of the problem is a reference query (see ReferenceRows); a column is a token's shares of
/// their attention; what is to be reached are the outputs and, as one more number, that the shares add up. A token's score is the
/// gain of the step that chose it, the squares by which the outputs were missed less; tokens that no step chose score 0.
/// The gain alone loses what a later question may ask for: it is a member for RankFusion, beside KVzip. Needs Eigen.
struct Pursuit {
  Budget budget = 1024;
  std::size_t sinks = 4;
  std::size_t steps = 256;
  std::size_t candidates = 1024;
  std::size_t rows = 512;
  double ridge = 0.003;

  static constexpr PolicyName name{"pursuit", "Keeps the tokens out of which attention's outputs are made up best."};
  static constexpr auto parameters() {
    return list(parameter("budget", &Pursuit::budget, "Slots that a head keeps when a prompt ends."),
                parameter("sinks", &Pursuit::sinks, "So many first tokens are chosen first."),
                parameter("steps", &Pursuit::steps, "So many tokens are chosen at most; all others score 0."),
                parameter("candidates", &Pursuit::candidates, "Of so many tokens, those with the largest first gain."),
                parameter("rows", &Pursuit::rows,
                          "About so many tokens' queries are looked at, of the prompt and of probes."),
                parameter("ridge", &Pursuit::ridge, "What a choice costs, as a share of the mean square of a column."));
  }

  struct PromptState {
    ProbeMemory probes;
    std::size_t bytes() const { return sizeof(PromptState) + probes.bytes(); }
  };
  Needs needs() const { return {.query_stride = 2, .query_most = 3 * rows}; }
  void observe(Head<Pursuit>& head, const Observation& seen) const {
    if (head.prompt) head.prompt->probes.observe(head, seen);
  }

  void score(const Head<Pursuit>& head, std::span<float> scores) const {
    std::ranges::fill(scores, 0.0f);
    const std::size_t kept = head.reference_queries().positions.size();
    if (scores.empty()) return;
    if (head.prompt == nullptr || kept == 0) {
      if (head.size() <= head.budget) return;
      fail(ErrorCode::missing_feed, "Pursuit: no query of a prompt is kept; it acts at the end of a prompt only");
    }
    const ReferenceRows references(head, head.prompt->probes, std::max<std::size_t>(1, kept / rows));
    Search search(*this, references, head.keys());
    search.run(scores);
  }

  void validate(const CacheShape& shape) const {
    require_between("Pursuit: sinks", sinks, 0);
    require_between("Pursuit: steps", steps, 1);
    require_between("Pursuit: candidates", candidates, 1);
    require_between("Pursuit: rows", rows, 1);
    require_share("Pursuit: ridge", ridge);
    budget.require(sinks + 1, "Pursuit: sinks + 1", shape);
  }

 private:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Index = Eigen::Index;

  /// The problem in normal form, among the candidates: the gram matrix of their columns, and their products with the targets.
  class Search {
   public:
    Search(const Pursuit& policy, const ReferenceRows& references, ConstRows keys) : policy_(policy) {
      const Matrix targets = weighted_targets(references);
      const auto count = Index(keys.count);
      products_.resize(count, targets.cols());
      squares_.resize(count);
      for (Index begin = 0; begin < count; begin += AtOnce) {
        const Index size = std::min(AtOnce, count - begin);
        Matrix columns = weighted_columns(references, keys.subrows(std::size_t(begin), std::size_t(size)));
        Matrix products(size, targets.cols());
        multiply(rows_of(columns), rows_of(targets), rows_of(products));
        products_.middleRows(begin, size) = products;
        squares_.segment(begin, size) = columns.rowwise().squaredNorm();
        if (size == count) columns_.swap(columns);
      }
      choose_candidates(keys.count);
      if (columns_.rows() == Index(tokens_.size())) return;  // all tokens are candidates, and their columns are known
      std::vector<float> chosen;
      for (const std::size_t token : tokens_) chosen.insert(chosen.end(), keys[token].begin(), keys[token].end());
      columns_ = weighted_columns(references, {chosen.data(), tokens_.size(), keys.dim});
    }

    void run(std::span<float> scores) {
      const Index count = Index(tokens_.size()), most = std::min<Index>(count, Index(policy_.steps));
      Matrix gram(count, count);
      kvc::gram(rows_of(columns_), rows_of(gram));
      const float stiffness = float(policy_.ridge) * squares_.mean(), least = 1e-6f * squares_.maxCoeff() + 1e-12f;
      squares_.array() += stiffness;
      Eigen::MatrixXf factor(count, most);
      std::vector<bool> used(tokens_.size());
      for (Index step = 0; step < most; ++step) {
        const Eigen::VectorXf gains = products_.rowwise().squaredNorm().cwiseQuotient(squares_);
        Index chosen = -1;
        if (step < Index(policy_.sinks) && tokens_[std::size_t(step)] == std::size_t(step))
          chosen = step;
        else
          for (Index i = 0; i < count; ++i)
            if (!used[std::size_t(i)] && (chosen < 0 || gains[i] > gains[chosen])) chosen = i;
        used[std::size_t(chosen)] = true;
        scores[tokens_[std::size_t(chosen)]] = gains[chosen];
        const float length = std::sqrt(std::max(squares_[chosen], least));
        auto column = factor.col(step);
        column = gram.col(chosen);
        column.noalias() -= factor.leftCols(step) * factor.row(chosen).head(step).transpose();
        column[chosen] += stiffness;
        column /= length;
        const Eigen::RowVectorXf explained = products_.row(chosen) / length;
        products_.noalias() -= column * explained;
        squares_ = (squares_ - column.cwiseAbs2()).cwiseMax(least);
      }
    }

   private:
    /// Tokens whose columns are computed together, so that memory does not grow with the prompt.
    static constexpr Index AtOnce = 1024;

    static ConstRows rows_of(const Matrix& matrix) {
      return {matrix.data(), std::size_t(matrix.rows()), std::size_t(matrix.cols())};
    }
    static Rows<float> rows_of(Matrix& matrix) {
      return {matrix.data(), std::size_t(matrix.rows()), std::size_t(matrix.cols())};
    }
    static Eigen::Map<const Eigen::ArrayXf> weights_of(const ReferenceRows& references) {
      return {references.weights().data(), Index(references.count())};
    }
    /// What every reference row is to find, and the number that says that its shares add up, which weighs half as much as the
    /// outputs vary: [reference rows, value_dim + 1].
    static Matrix weighted_targets(const ReferenceRows& references) {
      const ConstRows outputs = references.outputs();
      const Eigen::Map<const Matrix> found(outputs.data, Index(outputs.count), Index(outputs.dim));
      Matrix targets(found.rows(), found.cols() + 1);
      targets.leftCols(found.cols()) = found;
      const Matrix apart = found.rowwise() - found.colwise().mean();
      targets.rightCols(1).setConstant(0.5f * std::sqrt(apart.rowwise().squaredNorm().mean()));
      targets.array().colwise() *= weights_of(references);
      return targets;
    }
    /// The shares that keys have of every reference row's attention: [keys, reference rows].
    static Matrix weighted_columns(const ReferenceRows& references, ConstRows keys) {
      Matrix columns(Index(keys.count), Index(references.count()));
      references.shares(keys, rows_of(columns));
      columns.array().rowwise() *= weights_of(references).transpose();
      return columns;
    }

    /// The first tokens, and those whose first step would gain most, in the order of the text.
    void choose_candidates(std::size_t count) {
      tokens_.resize(count);
      std::iota(tokens_.begin(), tokens_.end(), std::size_t{0});
      if (count <= policy_.candidates) return;
      const Eigen::VectorXf gains = products_.rowwise().squaredNorm().cwiseQuotient(squares_.cwiseMax(1e-30f));
      const auto better = [&](std::size_t a, std::size_t b) {
        const float x = gains[Index(a)], y = gains[Index(b)];
        return x != y ? x > y : a < b;
      };
      const auto first = tokens_.begin() + std::ptrdiff_t(std::min(policy_.sinks, policy_.candidates));
      std::nth_element(first, tokens_.begin() + std::ptrdiff_t(policy_.candidates), tokens_.end(), better);
      tokens_.resize(policy_.candidates);
      std::ranges::sort(tokens_);
      products_ = Matrix(products_(tokens_, Eigen::all));
      squares_ = Eigen::VectorXf(squares_(tokens_));
    }

    const Pursuit& policy_;
    std::vector<std::size_t> tokens_;  // the candidates
    Matrix columns_, products_;        // [candidates, reference rows], [candidates, value_dim + 1]
    Eigen::VectorXf squares_;
  };
};

}  // namespace kvc::inline KVC_ABI
