#include <kvc/kernels.cpp.hpp>
