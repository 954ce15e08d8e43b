// A function that takes a type of the library. In takes.cpp, which is built with other flags, that type has another name.
#include <kvc/views.hpp>

float first_of(kvc::ConstRows rows) {
  return rows.data[0];
}
