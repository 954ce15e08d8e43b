#include "catch_shim.hpp"

#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "kvc/kernels/dispatch.hpp"

using kvc::Isa;

namespace {

/// Sets KVC_ISA for the duration of a test and restores what was there.
class ScopedCap {
 public:
  explicit ScopedCap(const char* word) {
    if (const char* before = std::getenv("KVC_ISA")) before_ = before;
    setenv("KVC_ISA", word, 1);
  }
  ~ScopedCap() {
    if (before_.empty())
      unsetenv("KVC_ISA");
    else
      setenv("KVC_ISA", before_.c_str(), 1);
  }

 private:
  std::string before_;
};

}  // namespace

TEST_CASE("every level is found again by its name") {
  for (Isa isa : kvc::AllIsas) CHECK(kvc::parse_isa(kvc::to_string(isa)) == isa);
}

TEST_CASE("portable kernels are available everywhere and are the lowest level") {
  CHECK(kvc::available_isas().front() == Isa::portable);
}

TEST_CASE("KVC_ISA caps the level that is chosen") {
  ScopedCap cap("portable");
  CHECK(kvc::best_isa() == Isa::portable);
}

TEST_CASE("a cap at a level of this machine gives that level") {
  for (Isa isa : kvc::available_isas()) {
    ScopedCap cap(kvc::to_string(isa));
    CHECK(kvc::best_isa() == isa);
  }
}

TEST_CASE("a cap above the machine's level leaves the machine's level") {
  ScopedCap cap(kvc::to_string(kvc::machine::Highest));
  CHECK(kvc::best_isa() == kvc::available_isas().back());
}

TEST_CASE("a cap of another kind of processor is refused, for it would cap nothing") {
  for (Isa isa : kvc::AllIsas) {
    if (kvc::contains(kvc::machine::Highest, isa)) continue;
    ScopedCap cap(kvc::to_string(isa));
    try {
      kvc::best_isa();
      FAIL("no error");
    } catch (const kvc::Error& error) {
      CHECK(error.code() == kvc::ErrorCode::incompatible);
      const std::string message = error.what();
      for (const char* part : {"KVC_ISA", kvc::to_string(isa), "other processors", kvc::to_string(kvc::machine::isa())})
        CHECK(message.find(part) != std::string::npos);
    }
  }
}

TEST_CASE("every level contains itself, the level below it and the portable one, and none of another kind of processor") {
  for (Isa isa : kvc::AllIsas) {
    CHECK(kvc::contains(isa, isa));
    CHECK(kvc::contains(isa, kvc::below(isa)));
    CHECK(kvc::contains(isa, Isa::portable));
    CHECK(kvc::contains(Isa::portable, isa) == (isa == Isa::portable));
  }
  CHECK(kvc::contains(Isa::amx, Isa::avx2));
  CHECK_FALSE(kvc::contains(Isa::amx, Isa::neon));
  CHECK_FALSE(kvc::contains(Isa::neondotprod, Isa::avx2));
}

// Hidden: level.sh asks it what the machine has.
TEST_CASE("the level that KVC_ISA names is the one in use", "[.level]") {
  const char* named = std::getenv("KVC_ISA");
  const std::string wanted = named ? named : kvc::to_string(kvc::available_isas().back());
  CHECK(kvc::to_string(kvc::best_isa()) == wanted);
}

#if defined(__x86_64__) && defined(__linux__)
namespace {

/// Gives this thread a signal stack that has no room for tiles; Linux then refuses them to the process.
struct SmallSignalStack {
  std::vector<char> memory = std::vector<char>(8192);
  SmallSignalStack() {
    const stack_t stack{memory.data(), 0, memory.size()};
    REQUIRE(sigaltstack(&stack, nullptr) == 0);
  }
  ~SmallSignalStack() {
    const stack_t none{nullptr, SS_DISABLE, 0};
    sigaltstack(&none, nullptr);
  }
};

}  // namespace

// Hidden: refused.sh runs each in a process that has asked for nothing yet.
TEST_CASE("where the system refuses AMX, the level below is used", "[.refused]") {
  const SmallSignalStack small;
  CHECK(kvc::best_isa() == Isa::avx512vnni);
  CHECK_FALSE(kvc::is_available(Isa::amx));
}

TEST_CASE("a cap below AMX does not ask the system for it", "[.unasked]") {
  ScopedCap cap("avx512vnni");
  CHECK(kvc::best_isa() == Isa::avx512vnni);
  const SmallSignalStack small;  // refused from now on, unless it was granted before
  CHECK_FALSE(kvc::is_available(Isa::amx));
}
#endif

TEST_CASE("an unknown KVC_ISA is an error that lists the levels") {
  ScopedCap cap("sse9");
  try {
    kvc::best_isa();
    FAIL("no error");
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::unknown_name);
    const std::string message = error.what();
    for (const char* part :
         {"KVC_ISA", "sse9", "portable", "avx2", "avx512", "avx512vnni", "amx", "neon", "neondotprod"})
      CHECK(message.find(part) != std::string::npos);
  }
}

TEST_CASE("ScopedIsa chooses the kernels of the whole process and gives the level back") {
  const Isa before = kvc::current_isa();
  for (Isa isa : kvc::available_isas()) {
    kvc::ScopedIsa scoped(isa);
    CHECK(kvc::current_isa() == isa);
    CHECK(std::string(kvc::kernels::active().name) == kvc::to_string(isa));
  }
  CHECK(kvc::current_isa() == before);
}

TEST_CASE("asking for a level that the machine lacks is an error") {
  for (Isa isa : kvc::AllIsas) {
    if (kvc::is_available(isa)) {
      CHECK(std::string(kvc::kernels::table(isa).name) == kvc::to_string(isa));
    } else {
      CHECK_THROWS_AS(kvc::ScopedIsa(isa), kvc::Error);
      CHECK_THROWS_AS(kvc::kernels::table(isa), kvc::Error);
    }
  }
}
