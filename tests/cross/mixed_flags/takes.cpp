#include <kvc/views.hpp>

float first_of(kvc::ConstRows rows);

int main() {
  const float x = 0;
  return static_cast<int>(first_of({&x, 1, 1}));
}
