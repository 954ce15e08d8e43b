// What a file pays for including the library alone.
#include <kvc/kvc.hpp>
