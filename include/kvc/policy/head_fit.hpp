#pragma once
#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "kvc/executor.hpp"
#include "kvc/policy/reference_rows.hpp"

namespace kvc::inline KVC_ABI {

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
  /// given, within [-largest, largest]. `read_back` turns a value into what its codes will read back as: tokens are quantized one
  /// after the other, those with the most attention first and the head's first not at all, and the error of each is pushed on to
  /// the tokens that are still to come (GPTQ, arXiv 2210.17323). Null: nothing is quantized.
  void fit_values(Rows<float> values, float largest, const FunctionRef<void(std::span<float>)>* read_back) {
    const auto within = [largest](double x) { return std::clamp(x, -double(largest), double(largest)); };
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
      if (read_back) solver.quantize(fitted, largest, *read_back, begin == 0);
      kept.middleRows(begin, size) = fitted.unaryExpr(within).cast<float>();
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
    void quantize(Eigen::MatrixXd& values, float largest, const FunctionRef<void(std::span<float>)>& read_back,
                  bool spares_first) const {
      const Index count = values.rows();
      Eigen::MatrixXd inverse = Eigen::MatrixXd::Identity(count, count);
      factor_.matrixL().solveInPlace(inverse);
      Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> left = values(order_, Eigen::all);
      for (Index i = count; i-- > 0;) {
        if (spares_first && order_[std::size_t(i)] == 0) continue;
        const Eigen::RowVectorXd before = left.row(i);
        Eigen::RowVectorXf row = before.cast<float>();
        const std::span<float> numbers(row.data(), std::size_t(row.size()));
        for (float& x : numbers) x = std::clamp(x, -largest, largest);
        read_back(numbers);
        left.row(i) = row.cast<double>();
        left.topRows(i).noalias() -= inverse.row(i).head(i).transpose() * ((before - left.row(i)) / inverse(i, i));
      }
      values(order_, Eigen::all) = left;
    }

   private:
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

}  // namespace kvc::inline KVC_ABI
