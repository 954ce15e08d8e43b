// One file that chooses policies by name.
#include <kvc/kvc.hpp>
#include <kvc/named/any_policy.hpp>

kvc::AnyPolicy policy_of(const char* text) {
  return kvc::AnyPolicy::parse(text);
}
