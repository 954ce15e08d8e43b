#include <algorithm>
#include <mutex>
#include <numeric>

#include "catch_shim.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/comparison.hpp"
#include "evaluation/repeat_probe.hpp"
#include "kvc/error.hpp"
#include "kvc/kvc.hpp"

// Comparisons with policies that want to see the prompt repeated, as KVzip does.

using namespace evaluation;

namespace {

/// Keeps the tokens that the repetition attended to most. It writes down what layer 0's first head saw.
struct Rehearsed {
  kvc::Budget budget = 6;

  static constexpr kvc::PolicyName name{"rehearsed", "Keeps what the repetition of a prompt attends to."};
  static constexpr auto parameters() {
    return kvc::list(kvc::parameter("budget", &Rehearsed::budget, "Slots that a head keeps."));
  }

  struct Slot {
    float score = 0;
  };
  struct Seen {
    kvc::Event event;
    std::size_t slots, queries;
    kvc::Position begin, end;
  };
  static inline std::mutex guard;
  static inline std::vector<Seen> log;

  kvc::Needs needs() const { return {.probe = kvc::Feed::group_sums}; }
  void observe(kvc::Head<Rehearsed>& head, const kvc::Observation& seen) const {
    write_down(head, {seen.event, head.size(), seen.queries_count, seen.probe_begin, seen.probe_end});
    if (seen.event != kvc::Event::probe) return;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (head.positions[slot] >= seen.probe_begin && head.positions[slot] < seen.probe_end)
        head.slots[slot].score += seen.attention[0][slot];
  }
  void evict(kvc::Head<Rehearsed>& head, kvc::Plan& plan) const {
    if (head.event != kvc::Event::prompt_end || head.size() <= head.budget) return;
    write_down(head, {head.event, head.size(), 0, 0, 0});
    const std::span<float> scores = plan.scratch(head.size());
    for (std::size_t slot = 0; slot < head.size(); ++slot) scores[slot] = head.slots[slot].score;
    plan.top(scores, head.budget);
  }

 private:
  static void write_down(const kvc::Head<Rehearsed>& head, const Seen& seen) {
    const std::lock_guard<std::mutex> lock(guard);
    if (head.id == kvc::HeadId{0, 0}) log.push_back(seen);
  }
};

struct Tiny {
  engine::ThreadPool pool{2};
  TemporaryFile file{tiny_model().bytes()};
  engine::Model model = engine::Model::load(file.path(), pool);
};

std::vector<int> some_ids(std::size_t count) {
  std::vector<int> ids(count);
  for (std::size_t i = 0; i < count; ++i) ids[i] = static_cast<int>((3 + 11 * i) % 96);
  return ids;
}

std::vector<Contestant> contestants(const std::string& policies) {
  static const bool added = [] {
    kvc::AnyPolicy::add<Rehearsed>();
    return true;
  }();
  REQUIRE(added);
  return read_contestants(policies, {0.5});
}

void silent(const std::string&) {}

std::vector<double> nlls(const Tally& tally) {
  std::vector<double> all;
  for (const WindowScore& window : tally.windows) all.push_back(window.nll);
  return all;
}

}  // namespace

TEST_CASE("a prompt is repeated piece by piece, each behind a request that quotes where it starts") {
  const Tiny tiny;
  const engine::Tokenizer& tokenizer = tiny.model.tokenizer();
  const std::vector<int> prompt = some_ids(25);
  const auto probes = repeat_probes(prompt, tokenizer, 10);
  REQUIRE(probes.size() == 3);
  std::vector<int> together;
  for (const RepeatProbe& probe : probes) {
    CHECK(static_cast<std::size_t>(probe.begin) == together.size());
    const auto piece = static_cast<std::size_t>(probe.end - probe.begin);
    together.insert(together.end(), probe.ids.end() - static_cast<std::ptrdiff_t>(piece), probe.ids.end());
  }
  CHECK(together == prompt);
  CHECK(tokenizer.decode(probes[0].ids).starts_with("Repeat the previous context exactly."));
  const std::string second = tokenizer.decode(probes[1].ids);  // the tiny vocabulary has no line breaks
  CHECK(second.starts_with("Repeat the part of the previous context exactly, starting with" +
                           tokenizer.decode(std::span(prompt).subspan(2, 8)) +
                           tokenizer.decode(std::span(prompt).subspan(10, 10))));
}

TEST_CASE("a probing policy sees the repetition over the whole prompt, and acts after it") {
  const Tiny tiny;
  Rehearsed::log.clear();
  Comparison comparison(tiny.model, contestants("rehearsed"), {});
  comparison.run(Window{some_ids(15), 12}, silent);
  const auto& log = Rehearsed::log;
  const std::size_t repetition = repeat_probes(some_ids(12), tiny.model.tokenizer())[0].ids.size();
  const auto probe = std::ranges::find(log, kvc::Event::probe, &Rehearsed::Seen::event);
  const auto acts = std::ranges::find(log, kvc::Event::prompt_end, &Rehearsed::Seen::event);
  REQUIRE(probe != log.end());
  REQUIRE(acts != log.end());
  CHECK(std::ranges::count(log, kvc::Event::probe, &Rehearsed::Seen::event) == 1);
  CHECK(probe < acts);
  CHECK(probe->queries == repetition);
  CHECK((probe->begin == 0 && probe->end == 12));
  CHECK(acts->slots == 12);  // nothing of the repetition is there any more
  CHECK(comparison.tallies()[0].footprints.at(0).kept == 6.0 / 12);
  CHECK(comparison.tallies()[0].windows.size() == 1);
  CHECK(comparison.prompt_seconds().size() == 1);
  CHECK(comparison.repeat_seconds().size() == 1);
  CHECK(comparison.tallies()[0].probed);
}

TEST_CASE("probing changes nothing for the other policies and for the reference") {
  const Tiny tiny;
  const Window window{some_ids(20), 12};
  // As many contestants in both: the engine's sums depend on how many rows go through it together.
  Comparison alone(tiny.model, contestants("h2o:recent=2; full; snapkv:window=2"), {});
  Comparison beside(tiny.model, contestants("h2o:recent=2; rehearsed; snapkv:window=2"), {});
  alone.run(window, silent);
  beside.run(window, silent);
  CHECK(nlls(alone.reference()) == nlls(beside.reference()));
  CHECK(nlls(alone.tallies()[0]) == nlls(beside.tallies()[0]));
  CHECK(nlls(alone.tallies()[2]) == nlls(beside.tallies()[2]));
  CHECK(alone.tallies()[2].footprints.at(0).bytes == beside.tallies()[2].footprints.at(0).bytes);
  CHECK(nlls(beside.tallies()[1]) != nlls(beside.reference()));
}

TEST_CASE("every question is asked of the compressed prompt as if there were no others") {
  const Tiny tiny;
  const std::string policies = "full; h2o:recent=2; rehearsed; snapkv:window=2 | kivi:bits=2,group=8,residual=8";
  const std::vector<int> answers = {5, 40, 77, 5};
  Sample together{some_ids(12), {}};
  for (const int answer : answers) together.questions.push_back({{9, answer}, {answer, 3}, 0.5});
  Comparison all(tiny.model, contestants(policies), {}), single(tiny.model, contestants(policies), {});
  all.run(together, silent);
  for (const Question& question : together.questions) single.run(Sample{together.context, {question}}, silent);
  for (std::size_t c = 0; c < all.tallies().size(); ++c) {
    REQUIRE(all.tallies()[c].answers.size() == answers.size());
    for (std::size_t q = 0; q < answers.size(); ++q) {
      CHECK(all.tallies()[c].answers[q].found == single.tallies()[c].answers[q].found);
      CHECK(all.tallies()[c].answers[q].prompt == 0);
      CHECK(single.tallies()[c].answers[q].prompt == q);
    }
  }
  CHECK(all.prompt_seconds().size() == 1);
}

TEST_CASE("what a policy takes to act is measured") {
  const Tiny tiny;
  Comparison comparison(tiny.model, contestants("full; rehearsed"), {});
  comparison.run(Window{some_ids(15), 12}, silent);
  comparison.run(Window{some_ids(15), 12}, silent);
  CHECK(comparison.tallies()[1].act_seconds.size() == 2);
  CHECK(comparison.tallies()[1].kept.rows() == 4);
  CHECK(comparison.tallies()[0].kept.rows() == 0);  // everything is kept
}

TEST_CASE("a prompt whose repetition does not fit the model's context is refused where a policy wants it") {
  const Tiny tiny;  // a context of 64 tokens
  const Window window{some_ids(40), 30};
  Comparison(tiny.model, contestants("snapkv:window=2"), {}).run(window, silent);
  try {
    Comparison(tiny.model, contestants("snapkv:window=2; rehearsed"), {}).run(window, silent);
    FAIL("a repetition beyond the context was begun");
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::invalid_argument);
    CHECK(std::string(error.what()).find("rehearsed") != std::string::npos);
  }
}

TEST_CASE("windows and samples that cannot be run are refused, and so is timing before a run") {
  const Tiny tiny;
  Comparison comparison(tiny.model, contestants("full"), {});
  CHECK_THROWS_AS(comparison.time_attention(), kvc::Error);
  CHECK_THROWS_AS(comparison.time_tokens(), kvc::Error);
  CHECK_THROWS_AS(comparison.run(Window{{}, 0}, silent), kvc::Error);
  CHECK_THROWS_AS(comparison.run(Window{{1, 2, 3}, 2}, silent), kvc::Error);
  CHECK_THROWS_AS(comparison.run(Window{{1, 2, 3, 96}, 2}, silent), kvc::Error);
  CHECK_THROWS_AS(comparison.run(Sample{{}, {{{1}, {1}, {}}}}, silent), kvc::Error);
  CHECK_THROWS_AS(comparison.run(Sample{{1}, {{{1}, {-1}, {}}}}, silent), kvc::Error);
  CHECK_NOTHROW(comparison.run(Window{{1, 2, 3, 4}, 2}, silent));
}
