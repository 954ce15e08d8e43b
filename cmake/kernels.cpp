#include <kvc/implementation.hpp>
