#include "evaluation/html_page.hpp"

#include <vector>

#include "catch_shim.hpp"
#include "evaluation/report_fixture.hpp"

using namespace evaluation;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Checks that what is opened is closed, in order.
void check_nesting(const std::string& page) {
  std::vector<std::string> open;
  for (std::size_t at = page.find('<'); at != page.npos; at = page.find('<', at + 1)) {
    const std::size_t end = page.find('>', at);
    REQUIRE(end != page.npos);
    const std::string tag = page.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" \n"));
    if (tag.ends_with("/") || tag.starts_with("!") || name == "meta" || name == "br") continue;
    if (!name.starts_with("/")) {
      open.push_back(name);
      continue;
    }
    CAPTURE(at, tag);
    REQUIRE_FALSE(open.empty());
    REQUIRE("/" + open.back() == name);
    open.pop_back();
  }
  CHECK(open.empty());
}

}  // namespace

TEST_CASE("the page has a section for every length of prompts, with every part") {
  Report report = measured_report({measured_result("snapkv | kivi:bits=4", 0.5), measured_result("full", 1)});
  report.lengths.push_back(report.lengths[0]);
  report.lengths[1].prompt = 4096;
  const std::string page = html_page(report);
  for (const char* part :
       {"<h2 id=\"p1024\">", "<h2 id=\"p4096\">", "Quality against bytes", "All figures", "Numbers found again",
        "Where the bytes are", "Time and working memory", "What is kept", "How this was measured",
        "data:image/png;base64,", "prefers-color-scheme:dark", "compare --model &quot;a b&quot;"}) {
    CAPTURE(part);
    CHECK(contains(page, part));
  }
  check_nesting(page);
}

TEST_CASE("the page asks for nothing from the network") {
  const std::string page = html_page(measured_report({measured_result("full", 1)}));
  for (const char* loads : {"src=", "url(", "@import", "<link", "<script"}) CHECK_FALSE(contains(page, loads));
  for (std::size_t at = page.find("href=\""); at != page.npos; at = page.find("href=\"", at + 1)) {
    const std::string target = page.substr(at + 6, 5);
    CHECK((target.starts_with("#") || target == "data:"));
  }
}

TEST_CASE("passkeys are counted by depth, the full cache's above the others") {
  const std::string page = html_page(measured_report({measured_result("snapkv", 0.5)}));
  CHECK(contains(page, "<th class=\"heat\">25 %"));
  CHECK(contains(page, "style=\"--share:50%\">1/2</td>"));
  CHECK(page.find("full:type=f32</td>") < page.find("snapkv <small>at 0.5</small></td><td class=\"heat\""));
}

TEST_CASE("names and paths are shown as they are, not read as HTML") {
  Report report = measured_report({measured_result("full", 1)});
  report.protocol.model = "folder/<b>model</b>.gguf";
  report.protocol.texts = {"<i>.txt"};
  const std::string page = html_page(report);
  CHECK_FALSE(contains(page, "<b>"));
  CHECK_FALSE(contains(page, "<i>.txt"));
  CHECK(contains(page, "&lt;b&gt;"));
  CHECK_FALSE(contains(page, "folder/&lt;b&gt;model&lt;/b&gt;</h1>"));
}

TEST_CASE("a page without windows, passkeys or times leaves those parts out") {
  Tally tally = measured();
  tally.windows.clear();
  tally.answers.clear();
  tally.attend_us.reset();
  Report report = measured_report({});
  report.lengths[0].full = make_result({"full", 1, kvc::AnyPolicy::parse("full")}, tally, tally);
  report.lengths[0].results = {report.lengths[0].full};
  const std::string page = html_page(report);
  CHECK_FALSE(contains(page, "Quality against bytes"));
  CHECK_FALSE(contains(page, "Numbers found again"));
  CHECK_FALSE(contains(page, "Time and working memory"));
  check_nesting(page);
}
