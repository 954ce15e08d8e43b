// main() for Catch2 2. Its prebuilt one is C++14 and lacks what C++20 tests refer to (printing std::string_view).
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

int main(int argument_count, char** arguments) {
  Catch::Session session;
  // The command line takes only one of these two: a test without an assertion fails, and so does a run without a test.
  const int strict = Catch::WarnAbout::NoAssertions | Catch::WarnAbout::NoTests;
  session.configData().warnings = static_cast<Catch::WarnAbout::What>(strict);
  return session.run(argument_count, arguments);
}
