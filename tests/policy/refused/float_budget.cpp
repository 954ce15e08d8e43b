// refused: could not convert|no viable conversion|cannot convert
#include <kvc/policies/snapkv.hpp>

kvc::SnapKV policy() {
  return {.budget = 0.25};
}
