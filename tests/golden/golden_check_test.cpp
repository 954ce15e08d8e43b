// What golden_check must never let through: comparisons that did not happen, and data that is not what it says.
#include <kvc/error.hpp>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "catch_shim.hpp"
#include "golden/runner.hpp"
#include "golden/sealed.hpp"

using evaluation::Json;
using golden::Case;
using golden::Check;
using golden::Runner;
using golden::Verdict;

namespace {

/// A folder of tensors while the object lives.
class Folder {
 public:
  Folder() {
    static int number = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("kvc_golden_" + std::to_string(getpid()) + "_" + std::to_string(number++));
    std::filesystem::create_directory(path_);
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string path() const { return path_.string(); }
  template <class T>
  void write(const std::string& file, const std::vector<T>& elements) const {
    std::ofstream(path_ / file, std::ios::binary)
        .write(reinterpret_cast<const char*>(elements.data()), std::streamsize(elements.size() * sizeof(T)));
  }

 private:
  std::filesystem::path path_;
};

/// A case with expected tensors `out` [2, 2] of 1, 2, 3, 4 and `kept` [1, 4] of 3, 1, 5 and padding.
struct Sample {
  Folder folder;
  std::string more = "";  // of the case
  std::string tolerance = R"(, "suggested_tol": 0.01)";
  std::string shape = "[2, 2]";

  Sample() {
    folder.write("out.bin", std::vector<float>{1, 2, 3, 4});
    folder.write("kept.bin", std::vector<std::int32_t>{3, 1, 5, -1});
  }
  Json entry() const {
    return Json::parse(R"({"name": "sample", "policy": "own", "params": {"variant": "plain"}, "tensors": [
      {"name": "out", "role": "expected", "dtype": "float32", "file": "out.bin", "shape": )" +
                       shape + tolerance + R"(},
      {"name": "kept", "role": "expected", "dtype": "int32", "file": "kept.bin", "shape": [1, 4]}])" +
                       more + "}");
  }
  Case load() const { return Case(folder.path(), entry()); }
  Verdict judged(void (*run)(const Case&, Check&)) const {
    const Runner runner{[](const Case& golden) { return golden.policy() == "own"; }, run};
    const Runner* const runners[] = {&runner};
    return golden::judge(folder.path(), entry(), runners);
  }
};

void compare_kept(Check& check) {
  check.index_set("kept", std::vector<kvc::Position>{1, 3, 5}, 0, 4);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a case whose elements all agree within the tolerance passes") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.values("out", std::vector<float>{1.005f, 2, 3, 4});
    compare_kept(check);
  });
  CHECK(verdict.line == "PASS sample");
  CHECK(verdict.kind == Verdict::Kind::passed);
}

TEST_CASE("a case whose runner compares nothing fails") {
  const Verdict verdict = Sample().judged([](const Case&, Check&) {});
  CHECK(verdict.kind == Verdict::Kind::failed);
  CHECK(verdict.line == "FAIL sample: nothing was compared");
}

TEST_CASE("an expected element that nothing touched fails the case") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.values("out", std::vector<float>{1, 2, 3});
    compare_kept(check);
  });
  CHECK(verdict.line == "FAIL sample: out, 1 of 4 elements were not compared");
}

TEST_CASE("every way of a case must compare everything again") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.begin_way("whole");
    check.values("out", std::vector<float>{1, 2, 3, 4});
    compare_kept(check);
    check.begin_way("chunks");
    compare_kept(check);
  });
  CHECK(verdict.line == "FAIL sample: out, 4 of 4 elements were not compared [chunks]");
}

TEST_CASE("elements that cannot be compared are named with the reason") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.values("out", std::vector<float>{1, 2});
    check.not_compared("out", 2, 2, "ties");
    compare_kept(check);
  });
  CHECK(verdict.line == "PASS sample");
  CHECK(verdict.notes == std::vector<std::string>{"out: 2 of 4 elements not compared, ties"});
}

TEST_CASE("a case that only declares its elements not comparable fails") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.not_compared("out", "ties");
    check.not_compared("kept", "ties");
  });
  CHECK(verdict.line == "FAIL sample: nothing was compared");
}

TEST_CASE("a difference beyond the tolerance fails with the tensor, the worst difference and the tolerance") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.begin_way("avx2");
    check.values("out", std::vector<float>{1.02f, 2, 3.5f, 4});
    compare_kept(check);
  });
  CHECK(verdict.line == "FAIL sample: out, worst difference 0.5, tolerance 0.01 (element 2, avx2)");
}

TEST_CASE("a difference in an earlier way is not forgotten") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    for (const float first : {1.5f, 1.0f}) {
      check.begin_way(first == 1 ? "good" : "bad");
      check.values("out", std::vector<float>{first, 2, 3, 4});
      compare_kept(check);
    }
  });
  CHECK(contains(verdict.line, "out, worst difference 0.5, tolerance 0.01 (element 0, bad)"));
}

TEST_CASE("what is not a number differs") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.values("out", std::vector<float>{1, 2, NAN, 4});
    compare_kept(check);
  });
  CHECK(contains(verdict.line, "out, worst difference inf"));
}

TEST_CASE("an infinity agrees with itself only, whatever the relative tolerance") {
  const Sample sample;
  sample.folder.write("out.bin", std::vector<float>{INFINITY, 2, 3, 4});
  const auto line = [&](float first) {
    const Case golden = sample.load();
    Check check(golden);
    check.values("out", std::vector<float>{first, 2, 3, 4}, 0, {0.1, 0.1});
    compare_kept(check);
    check.finish();
    return check.failures().empty() ? "" : check.failures()[0];
  };
  CHECK(line(INFINITY) == "");
  CHECK(contains(line(1), "worst difference inf, tolerance 0.1"));
}

TEST_CASE("too many elements are a failure, not a crash") {
  const Verdict verdict = Sample().judged([](const Case&, Check& check) {
    check.values("out", std::vector<float>{1, 2, 3, 4, 5});
  });
  CHECK(contains(verdict.line, "FAIL sample: out: got elements 0 to 5, but the tensor has 4"));
}

TEST_CASE("sets of indices ignore order and padding, and nothing else") {
  const auto judged = [](std::vector<kvc::Position> got) {
    const Sample sample;
    const Case golden = sample.load();
    Check check(golden);
    check.index_set("kept", got, 0, 4);
    check.not_compared("out", "");
    check.finish();
    return check.failures();
  };
  CHECK(judged({5, 3, 1}).empty());
  CHECK(contains(judged({5, 3}).at(0), "kept, worst difference 1"));
  CHECK(contains(judged({5, 3, 2}).at(0), "kept, worst difference 2"));
  CHECK(contains(judged({5, 3, 1, 1}).at(0), "kept, worst difference 1"));
}

TEST_CASE("codes may be one level off where the rule says so: in a share of them, or at ties") {
  const auto failures = [](std::vector<std::int32_t> got, golden::CodeRule rule) {
    const Sample sample;
    const Case golden = sample.load();
    Check check(golden);
    check.codes("kept", got, golden.integers("kept"), rule);
    check.not_compared("out", "");
    check.finish();
    return check.failures().size();
  };
  const std::vector<std::uint8_t> ties{1, 0, 0, 0};
  CHECK(failures({3, 1, 5, -1}, {}) == 0);
  CHECK(failures({4, 1, 5, -1}, {}) == 1);
  CHECK(failures({4, 1, 5, -1}, {.share = 0.25}) == 0);
  CHECK(failures({4, 2, 5, -1}, {.share = 0.25}) == 1);
  CHECK(failures({5, 1, 5, -1}, {.share = 1}) == 1);
  CHECK(failures({4, 1, 5, -1}, {.ties = ties}) == 0);
  CHECK(failures({3, 2, 5, -1}, {.ties = ties}) == 1);
}

TEST_CASE("values are compared where their codes agree") {
  const Sample sample;
  const Case golden = sample.load();
  Check check(golden);
  const std::vector<std::uint8_t> agree =
      check.codes("kept", std::vector<std::int32_t>{3, 1, 6, -1}, golden.integers("kept"), {.share = 0.25});
  check.values_where("out", std::vector<float>{1, 2, 30, 4}, agree);
  check.finish();
  CHECK(check.failures().empty());
  CHECK(check.notes() ==
        std::vector<std::string>{"out: 1 of 4 elements not compared, their codes differ by one level"});
}

TEST_CASE("values without codes may be off by one step in a share of them") {
  const auto failures = [](std::vector<float> got) {
    const Sample sample;
    const Case golden = sample.load();
    Check check(golden);
    check.quantized_values("out", got, std::vector<float>(4, 0.5f), {.share = 0.25});
    compare_kept(check);
    check.finish();
    return check.failures().size();
  };
  CHECK(failures({1, 2, 3, 4}) == 0);
  CHECK(failures({1.5f, 2, 3, 4}) == 0);
  CHECK(failures({1.5f, 2.5f, 3, 4}) == 1);
  CHECK(failures({2, 2, 3, 4}) == 1);
}

TEST_CASE("a tolerance stands at the tensor or at the case; without one a comparison is refused") {
  Sample sample;
  CHECK(sample.load().tensor("out").tolerance == 0.01);
  sample.tolerance = "";
  CHECK_FALSE(sample.load().tensor("out").tolerance);
  const Verdict verdict = sample.judged([](const Case&, Check& check) { check.values("out", {}); });
  CHECK(contains(verdict.line, "FAIL sample: out: the manifest states no tolerance"));
  sample.more = R"(, "tolerance": {"out": 0.25})";
  CHECK(sample.load().tensor("out").tolerance == 0.25);
}

TEST_CASE("a leading axis of one is a batch where fewer axes are asked for") {
  Sample sample;
  sample.shape = "[1, 2, 2]";
  const Case golden = sample.load();
  CHECK(golden.shape("out", 2) == std::vector<std::size_t>{2, 2});
  CHECK(golden.shape("out", 3) == std::vector<std::size_t>{1, 2, 2});
  CHECK_THROWS_AS(golden.shape("out", 1), kvc::Error);
  CHECK(golden.shape("kept", 2) == std::vector<std::size_t>{1, 4});
}

TEST_CASE("whole numbers may lie in a float tensor") {
  CHECK(Sample().load().integers("out") == std::vector<std::int32_t>{1, 2, 3, 4});
}

TEST_CASE("a case that its runner cannot run yet is skipped, with what is lacking") {
  const Sample sample;
  const Runner runner{[](const Case&) { return true; }, [](const Case&, Check& check) { check.fail("it ran"); },
                      [](const Case&) { return std::string("GroupQuant: bits must be smaller"); }};
  const Runner* const runners[] = {&runner};
  const Verdict verdict = golden::judge(sample.folder.path(), sample.entry(), runners);
  CHECK(verdict.kind == Verdict::Kind::skipped);
  CHECK(verdict.line == "SKIP sample: GroupQuant: bits must be smaller");
}

TEST_CASE("a case that nobody runs is skipped, with its policy and variant") {
  const Sample sample;
  const Verdict verdict = golden::judge(sample.folder.path(), sample.entry(), {});
  CHECK(verdict.kind == Verdict::Kind::skipped);
  CHECK(verdict.line == "SKIP sample: nothing here runs policy own, variant plain");
}

TEST_CASE("damaged data fail the case whether it has a runner or not") {
  const auto line = [](auto damage) {
    Sample sample;
    damage(sample);
    return golden::judge(sample.folder.path(), sample.entry(), {}).line;
  };
  const std::string shorter = line([](Sample& sample) { sample.folder.write("out.bin", std::vector<float>{1, 2, 3}); });
  CHECK(contains(shorter, "FAIL sample: "));
  CHECK(contains(shorter, "out.bin: tensor out has 16 bytes by its shape, but the file has 12"));
  CHECK(
      contains(line([](Sample& sample) { sample.folder.write("out.bin", std::vector<float>(5)); }), "the file has 20"));
  CHECK(contains(line([](Sample& sample) { std::filesystem::remove(sample.folder.path() + "/kept.bin"); }),
                 "kept.bin cannot be read"));
  CHECK(contains(line([](Sample& sample) { sample.shape = "[2, -2]"; }), "out: an extent must be a whole number"));
  CHECK(contains(line([](Sample& sample) { sample.shape = "[4000000, 4000000, 4000000]"; }), "impossibly large"));
}

TEST_CASE("a manifest entry without a name, or without tensors, fails") {
  CHECK(contains(golden::judge("", Json::parse("{}"), {}).line, "FAIL (a case without a name)"));
  CHECK(contains(golden::judge("", Json::parse(R"({"name": "bare"})"), {}).line, "FAIL bare: "));
}

TEST_CASE("a folder without a manifest, or with an empty one, is refused") {
  const Folder folder;
  CHECK_THROWS_AS(golden::cases_of(folder.path()), kvc::Error);
  std::ofstream(folder.path() + "/manifest.json") << R"({"cases": []})";
  CHECK_THROWS_AS(golden::cases_of(folder.path()), kvc::Error);
  std::ofstream(folder.path() + "/manifest.json") << R"({"cases": [{"name": "cut)";
  CHECK_THROWS_AS(golden::cases_of(folder.path()), kvc::Error);
}

TEST_CASE("packed words give back their codes, lowest bits first") {
  CHECK(golden::unpacked(std::vector<std::int32_t>{0x76543210, -1}, 2, 8, 1, 4) ==
        std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 15, 15, 15, 15, 15, 15, 15, 15});
  CHECK(golden::unpacked(std::vector<std::int32_t>{0x04030201, 0x08070605}, 1, 4, 2, 8) ==
        std::vector<std::int32_t>{1, 5, 2, 6, 3, 7, 4, 8});
  CHECK_THROWS_AS(golden::unpacked(std::vector<std::int32_t>{0}, 1, 6, 1, 4), kvc::Error);
}
