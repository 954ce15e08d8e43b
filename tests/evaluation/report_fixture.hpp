#pragma once
#include "evaluation/results.hpp"

/// A policy's made-up figures of two windows and two prompts with two questions each.
inline evaluation::Tally measured() {
  evaluation::Tally tally;
  tally.windows = {{.nll = 2.0, .kl = 0.04, .top1 = 0.75, .kl_first = 0.02, .kl_last = 0.06},
                   {.nll = 4.0, .kl = 0.06, .top1 = 0.85, .kl_first = 0.04, .kl_last = 0.10}};
  tally.answers = {{0, 0.25, true}, {0, 0.75, true}, {1, 0.25, true}, {1, 0.75, false}};
  tally.footprints = {{.bytes = 1000, .dense_bytes = 4096, .kept = 0.5, .parts = {100, 600, 200, 80, 20}},
                      {.bytes = 1048, .dense_bytes = 4096, .kept = 0.5, .parts = {100, 600, 200, 80, 68}}};
  tally.act_seconds = {0.5, 0.25, 1};
  tally.act_peak_bytes = 3 << 20;
  tally.kept = {4, {15, 0, 0, 15, 0, 1, 15, 15}};
  tally.attend_us = 12.5;
  tally.token_ms = 7.25;
  return tally;
}

inline evaluation::Result measured_result(const char* policy, double keep) {
  evaluation::Tally full = measured();
  full.windows[0].nll = 1.9;
  full.windows[1].nll = 3.9;
  return evaluation::make_result({policy, keep, kvc::AnyPolicy::parse(policy)}, measured(), full);
}

/// A report of one length of prompts, with these results.
inline evaluation::Report measured_report(std::vector<evaluation::Result> results) {
  evaluation::Report report;
  report.protocol = {.model = "a \"model\".gguf",
                     .texts = {"t.txt"},
                     .commands = {"compare --model \"a b\""},
                     .machine = "a machine",
                     .tuning = false,
                     .windows = {.count = 2},
                     .samples = 2,
                     .needles = 2,
                     .dense = "f16",
                     .prompt_only = false,
                     .fast = false,
                     .threads = 2};
  report.lengths.push_back({.prompt = 1024,
                            .prompt_seconds = 3.5,
                            .repeat_seconds = std::nullopt,
                            .full = measured_result("full:type=f32", 1),
                            .results = std::move(results)});
  return report;
}
