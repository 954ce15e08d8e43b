# What only the project's own programs (tests, examples, benchmarks) are built with.

set(KVC_SANITIZER "" CACHE STRING "Sanitizers to build everything with, as in -fsanitize=...")
if(KVC_SANITIZER)
  add_compile_options(-fsanitize=${KVC_SANITIZER} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${KVC_SANITIZER})
endif()

add_library(kvc_warnings INTERFACE)
target_compile_options(kvc_warnings INTERFACE -Wall -Wextra -Wconversion -Wshadow -Werror)

# find_package that says what to install. `package` is the name for CMake, `debian` the one for apt-get.
macro(kvc_find package debian)
  find_package(${package} QUIET ${ARGN})
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was not found. Install it (Debian, Ubuntu: apt-get install ${debian}; "
                        "everything at once: sh cmake/setup.sh) or name its folder with -D${package}_DIR=...")
  endif()
endmacro()
