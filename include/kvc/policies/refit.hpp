#pragma once
#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/half.hpp"
#include "kvc/policy/competition.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/reference_rows.hpp"
#include "kvc/policy/stage.hpp"
#include "kvc/tiles.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {

/// What one head keeps, fitted to what its reference rows found in the whole head. Columns are kept tokens, rows are reference
/// rows. The fit goes block by block along the tokens, each to what the blocks before it left over, so that its cost grows with
/// the tokens and not with their square; a head that keeps at most Block tokens is fitted at once.
class HeadFit {
 public:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Index = Eigen::Index;
  static constexpr Index Block = 512;

  /// `keys` [kept, head_dim] as they will be read back.
  HeadFit(const ReferenceRows& references, ConstRows keys, float ridge)
      : references_(references), ridge_(ridge), shares_(Index(keys.count), Index(references.count())) {
    references.shares(keys, rows_of(shares_));
    weights_ = Eigen::Map<const Eigen::ArrayXf>(references.weights().data(), Index(references.count()));
  }

  /// How many tokens each kept one stands for, so that their shares of every reference row add up to 1: least squares with a
  /// ridge towards 1, within [least, most], by an active set.
  Eigen::VectorXf fit_multiplicity(float least, float most) {
    const Index count = shares_.rows();
    Eigen::VectorXf tokens = Eigen::VectorXf::Ones(count);
    Eigen::VectorXf missing = (weights_ * (1 - shares_.colwise().sum().transpose().array())).matrix();
    for (Index begin = 0; begin < count; begin += Block) {
      const Index size = std::min(Block, count - begin);
      const Matrix columns = (shares_.middleRows(begin, size).array().rowwise() * weights_.transpose()).matrix();
      const Eigen::VectorXf change = bounded_ridge(columns, missing, least - 1, most - 1);
      tokens.segment(begin, size) += change;
      missing -= columns.transpose() * change;
    }
    return tokens;
  }

  /// From now on the rows' attention over the kept tokens, with these multiplicities, instead of their shares.
  void normalize(const Eigen::VectorXf& tokens) {
    shares_.array().colwise() *= tokens.array();
    const Eigen::ArrayXf sums = shares_.colwise().sum().transpose().array().max(1e-6f);
    shares_.array().rowwise() *= (weights_ / sums).transpose();
  }

  /// Values [kept, value_dim] whose attention gives the outputs of the whole head, by least squares with a ridge towards those
  /// given. With `levels` codes, the values are those that codes will read back as: tokens are quantized one after the other, those
  /// with the most attention first and the head's first not at all, and the error of each is pushed on to the tokens that are still
  /// to come (GPTQ, arXiv 2210.17323). `levels` 0: nothing is quantized.
  void fit_values(Rows<float> values, unsigned levels) {
    Eigen::Map<Matrix, 0, Eigen::OuterStride<>> kept(values.data, Index(values.count), Index(values.dim),
                                                     Eigen::OuterStride<>(Index(values.stride)));
    const ConstRows outputs = references_.outputs();
    Matrix found(shares_.cols(), Index(values.dim));
    const Matrix transposed = shares_.transpose();
    multiply(rows_of(transposed), values, rows_of(found));
    const Eigen::Map<const Matrix> wanted(outputs.data, found.rows(), found.cols());
    Matrix missing = (wanted.array().colwise() * weights_).matrix() - found;
    for (Index begin = 0; begin < kept.rows(); begin += Block) {
      const Index size = std::min(Block, kept.rows() - begin);
      const Matrix columns = shares_.middleRows(begin, size), before = kept.middleRows(begin, size);
      const Solver solver(columns, ridge_);
      Matrix wishes(size, missing.cols());
      multiply(rows_of(columns), rows_of(missing), rows_of(wishes));
      Eigen::MatrixXd fitted = before.cast<double>() + solver.solve(wishes.cast<double>());
      if (levels != 0) solver.quantize(fitted, levels, begin == 0);
      kept.middleRows(begin, size) = fitted.cast<float>();
      if (begin + size == kept.rows()) break;
      const Matrix change = kept.middleRows(begin, size) - before, back = columns.transpose();
      Matrix moved(missing.rows(), missing.cols());
      multiply(rows_of(back), rows_of(change), rows_of(moved));
      missing -= moved;
    }
  }

  static ConstRows rows_of(const Matrix& matrix) {
    return {matrix.data(), std::size_t(matrix.rows()), std::size_t(matrix.cols())};
  }
  static Rows<float> rows_of(Matrix& matrix) {
    return {matrix.data(), std::size_t(matrix.rows()), std::size_t(matrix.cols())};
  }

 private:
  /// The gram matrix of some columns with a ridge, factored with the tokens in ascending order of their squares. Then the lower
  /// factor's inverse, read from its end, is the upper factor of the inverse that GPTQ wants.
  class Solver {
   public:
    Solver(const Matrix& columns, float ridge) : order_(std::size_t(columns.rows())) {
      Matrix gram(columns.rows(), columns.rows());
      kvc::gram(rows_of(columns), rows_of(gram));
      const Eigen::VectorXf squares = gram.diagonal();
      std::iota(order_.begin(), order_.end(), Index{0});
      std::ranges::stable_sort(order_, {}, [&](Index i) { return squares[i]; });
      Eigen::MatrixXd system = gram(order_, order_).template cast<double>();
      system.diagonal().array() += double(ridge) * double(squares.mean()) + 1e-9;
      factor_.compute(system);
    }
    Eigen::MatrixXd solve(const Eigen::MatrixXd& wishes) const {
      const Eigen::MatrixXd ordered = factor_.solve(Eigen::MatrixXd(wishes(order_, Eigen::all)));
      Eigen::MatrixXd solution(wishes.rows(), wishes.cols());
      solution(order_, Eigen::all) = ordered;
      return solution;
    }
    /// `spares_first`: the first token's value stays as it is.
    void quantize(Eigen::MatrixXd& values, unsigned levels, bool spares_first) const {
      const Index count = values.rows();
      Eigen::MatrixXd inverse = Eigen::MatrixXd::Identity(count, count);
      factor_.matrixL().solveInPlace(inverse);
      Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> left = values(order_, Eigen::all);
      for (Index i = count; i-- > 0;) {
        if (spares_first && order_[std::size_t(i)] == 0) continue;
        const Eigen::RowVectorXd before = left.row(i);
        quantize_row(left.row(i), levels);
        const Eigen::RowVectorXd error = (before - left.row(i)) / inverse(i, i);
        left.topRows(i).noalias() -= inverse.row(i).head(i).transpose() * error;
      }
      values(order_, Eigen::all) = left;
    }

   private:
    /// What GroupQuant reads back of a row that is one group.
    template <class Row>
    static void quantize_row(Row row, unsigned levels) {
      const float minimum = from_half(to_half(static_cast<float>(row.minCoeff())));
      const float scale =
          from_half(to_half((static_cast<float>(row.maxCoeff()) - minimum) / static_cast<float>(levels - 1)));
      if (!(scale > 0)) {
        row.setConstant(double(minimum));
        return;
      }
      for (Index c = 0; c < row.size(); ++c) {
        const double code =
            std::clamp(std::nearbyint((row[c] - double(minimum)) / double(scale)), 0.0, double(levels - 1));
        row[c] = code * double(scale) + double(minimum);
      }
    }

    std::vector<Index> order_;
    Eigen::LLT<Eigen::MatrixXd> factor_;
  };

  /// The change within [least, most] that explains `missing` best by the columns, with a ridge towards no change.
  Eigen::VectorXf bounded_ridge(const Matrix& columns, const Eigen::VectorXf& missing, float least, float most) const {
    constexpr int Rounds = 6;
    Matrix gram(columns.rows(), columns.rows());
    kvc::gram(rows_of(columns), rows_of(gram));
    gram.diagonal().array() += ridge_ * gram.diagonal().mean() + 1e-9f;
    const Eigen::VectorXf wishes = columns * missing;
    Eigen::VectorXf change = Eigen::VectorXf::Zero(columns.rows());
    std::vector<Index> open(std::size_t(columns.rows())), fixed;
    std::iota(open.begin(), open.end(), Index{0});
    for (int round = 0; round < Rounds && !open.empty(); ++round) {
      Eigen::VectorXf rest = wishes(open);
      if (!fixed.empty()) rest -= gram(open, fixed) * change(fixed);
      change(open) = Eigen::VectorXf(
          gram(open, open).template cast<double>().eval().llt().solve(rest.cast<double>()).template cast<float>());
      std::vector<Index> inside;
      for (const Index i : open) {
        if (change[i] >= least && change[i] <= most) {
          inside.push_back(i);
          continue;
        }
        change[i] = std::clamp(change[i], least, most);
        fixed.push_back(i);
      }
      if (inside.size() == open.size()) break;
      open.swap(inside);
    }
    return change;
  }

  const ReferenceRows& references_;
  float ridge_;
  Matrix shares_;  // [kept, reference rows]
  Eigen::ArrayXf weights_;
};

}  // namespace detail

/// Keeps the tokens that another policy scores highest in the whole cache, quantizes their keys, and then fits what is left to what
/// reference queries found in the whole head: first how many tokens each kept one stands for, then the values, so that they absorb
/// what eviction and the rounding of the keys did; the values' codes are chosen with their errors pushed on. As Attention Matching
/// (arXiv 2602.16284) fits multiplicities and values, over keys that are quantized already and with the replay of KVzip
/// (arXiv 2505.23416) and the prompt's own queries, moved behind it, as references. Needs Eigen; a probe adds its queries to the
/// references. It acts at the end of a prompt. At the end of a later one it fits again, as if the keys that were sealed before were to
/// be sealed anew: what their codes already lost is then fitted, but in other groups than theirs.
struct Refit {
  Member policy = {};
  Budget budget = 1024;
  unsigned bits = 3;
  std::size_t group = 64;
  std::size_t rows = 1024;
  double ridge = 0.03;
  double least = 0.1, most = 20;

  static constexpr PolicyName name{"refit", "Fits what another policy keeps to the attention of all tokens."};
  static constexpr auto parameters() {
    return list(
        parameter("policy", &Refit::policy, "The policy that scores; its own budget does not count."),
        parameter("budget", &Refit::budget, "Slots of a head, on average over the cache."),
        parameter("bits", &Refit::bits, "Of keys and values, 2, 3, 4 or 8; 16: neither is quantized."),
        parameter("group", &Refit::group, "So many kept tokens share the scale of a channel of keys."),
        parameter("rows", &Refit::rows, "About so many tokens' queries are matched, of the prompt and of probes."),
        parameter("ridge", &Refit::ridge, "What a change costs against a mismatch."),
        parameter("least", &Refit::least, "The fewest tokens that a kept one may stand for."),
        parameter("most", &Refit::most, "The most tokens that a kept one may stand for."));
  }

  struct PromptState {
    ProbeMemory probes;
    std::size_t bytes() const { return sizeof(PromptState) + probes.bytes(); }
  };
  std::span<const Member> members() const { return {&policy, 1}; }
  Needs needs() const { return {.query_stride = 2, .query_most = rows + rows / 2}; }
  void observe(Head<Refit>& head, const Observation& seen) const {
    if (head.prompt) head.prompt->probes.observe(head, seen);
  }
  void score_all(Cache<Refit> heads, ScoreSpans scores) const {
    std::vector<AnyHead> own;
    for (const Head<Refit>& head : heads) own.push_back(head.member(0));
    policy.score(own, scores);
    for (const std::span<float> each : scores)
      if (!each.empty()) each[0] = Protected;
  }
  void allocate_all(Cache<Refit> heads, std::span<std::size_t> budgets) const {
    Competition competition;
    for (std::size_t h = 0; h < heads.size(); ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets);
    if (bits != 16) round_to_blocks(heads, budgets);
  }
  void evict(Head<Refit>& head, Plan& plan) const {
    if (!head.acts) return;
    if (head.size() == 0) return;
    if (head.size() > head.budget) keep_best(plan, head.scores, head.budget);
    if (head.prompt && head.reference_queries().positions.size() != 0)
      match(head, plan);
    else if (head.size() > head.budget)
      fail(ErrorCode::missing_feed, "Refit: no query of a prompt is kept; it acts at the end of a prompt only");
  }
  Streams quantize(HeadId, const CacheShape& shape) const {
    if (bits == 16) return {};
    return {.key = {.format = key_format(), .sinks = 1, .batch = group, .whole_prompt = true},
            .value = {.format = value_format(shape), .sinks = 1, .batch = 32, .whole_prompt = true}};
  }
  void validate(const CacheShape& shape) const {
    require_between("Refit: group", group, 1);
    require_between("Refit: rows", rows, 1);
    require_share("Refit: ridge", ridge);
    if (bits != 16) {
      key_format().validate(shape.head_dim);
      value_format(shape).validate(shape.values_dim());
    }
    if (!(least > 0) || !(least <= 1) || !(most >= 1) || !(most < 1e4))
      fail(ErrorCode::invalid_argument,
           {"Refit: least (", least, ") must lie in (0, 1] and most (", most, ") in [1, 10000)"});
    if (!policy || !policy.stage().verbs().scores())
      fail(ErrorCode::incompatible, "Refit: policy must be a policy that scores");
    policy.with_budget(budget).stage().validate(shape);
  }

 private:
  /// A dword row of three-bit codes holds so many values, two rows of a tile so many keys.
  static constexpr std::size_t BlockTokens = 32;

  GroupQuant key_format() const { return {.bits = bits, .axis = Axis::channel, .group = group}; }
  GroupQuant value_format(const CacheShape& shape) const {
    return {.bits = bits, .axis = Axis::token, .group = shape.values_dim()};
  }

  /// Codes are stored for 32 tokens at a time, so every head keeps, besides its first token, a multiple of that: all round up, and
  /// then those that keep most give, a quarter of the heads a round, until the budget of all is held. A head of a few tokens has too
  /// few values to fit, so the places that heads get by this help the fit too.
  static void round_to_blocks(Cache<Refit> heads, std::span<std::size_t> budgets) {
    std::vector<std::size_t> order;
    std::size_t allowed = 0, held = 0;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      if (budgets[h] == 0 || budgets[h] >= heads[h].size()) continue;
      allowed += budgets[h];
      budgets[h] = std::min(round_up(budgets[h] - 1, BlockTokens) + 1, heads[h].size());
      held += budgets[h];
      order.push_back(h);
    }
    const auto gives = [&](std::size_t h) {
      const std::size_t surplus = (budgets[h] - 1) % BlockTokens, given = surplus ? surplus : BlockTokens;
      if (held <= allowed || budgets[h] <= given) return;
      budgets[h] -= given;
      held -= given;
    };
    for (std::size_t before = 0; held > allowed && held != before;) {
      before = held;
      std::ranges::stable_sort(order, std::greater<>(), [&](std::size_t h) { return budgets[h]; });
      for (std::size_t i = 0; i < divide_up(order.size(), 4); ++i) gives(order[i]);
    }
  }

  void match(const Head<Refit>& head, Plan& plan) const {
    std::vector<std::size_t> kept;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (plan.kept(slot)) kept.push_back(slot);
    const std::size_t dim = head.shape->head_dim, value_dim = head.shape->values_dim();
    std::vector<float> key_rows(kept.size() * dim), value_rows(kept.size() * value_dim);
    const Rows<float> keys(key_rows.data(), kept.size(), dim), values(value_rows.data(), kept.size(), value_dim);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      std::ranges::copy(head.keys()[kept[i]], keys[i].begin());
      std::ranges::copy(head.values()[kept[i]], values[i].begin());
    }
    if (bits != 16) read_back(keys);
    const std::size_t known = head.reference_queries().positions.size();
    const ReferenceRows references(head, head.prompt->probes, std::max<std::size_t>(1, known / rows));
    detail::HeadFit fit(references, keys, static_cast<float>(ridge));
    Eigen::VectorXf tokens = fit.fit_multiplicity(static_cast<float>(least), static_cast<float>(most));
    for (Eigen::Index i = 0; i < tokens.size(); ++i) tokens[i] = from_half(to_half(tokens[i]));
    fit.normalize(tokens);
    fit.fit_values(values, bits == 16 ? 0 : 1u << bits);
    // Keys so large that their rounding moves a logit by hundreds have no fit: what is kept then stays as it was.
    const bool finite = tokens.allFinite() && std::ranges::all_of(value_rows, [](float x) { return std::isfinite(x); });
    for (std::size_t i = 0; finite && i < kept.size(); ++i) {
      plan.multiplicity(kept[i], tokens[Eigen::Index(i)]);
      std::ranges::copy(values[i], plan.value(kept[i]).begin());
    }
  }
  /// Keys become what their codes will read back as: the first stays dense, the others are sealed in groups.
  void read_back(Rows<float> keys) const {
    if (keys.count < 2) return;
    const Rows<float> sealed = keys.subrows(1, keys.count - 1);
    for (std::size_t begin = 0, count = 0; begin < sealed.count; begin += count) {
      const std::size_t left = sealed.count - begin;
      count = left <= group + group / 2 ? left : group;  // as Stream::whole_prompt seals them
      GroupQuant format = key_format();
      format.group = count;
      const auto codec = make_codec(format, Role::key, keys.dim);
      std::vector<std::byte> block(codec->block_bytes(count) + 64);
      codec->encode(sealed.subrows(begin, count), block.data(), count, 0);
      codec->decode(block.data(), count, 0, sealed.subrows(begin, count));
    }
  }
};

}  // namespace kvc::inline KVC_ABI
